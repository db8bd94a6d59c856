//! The check of an Ogg Opus file (RFC 3533, RFC 7845) that a device is to play.
//!
//! Stricter than a player on a computer has to be: firmware with `notify` (docs/notify.md and `ogg_demuxer.cc` of
//! 78/xiaozhi-esp32, commit 77500b8) plays one mono stream, holds a packet in 2 KB and stops at the first thing that it cannot
//! decode, after it has played what came before. It tells nobody, so a file is checked before a device is sent to it.

use std::fmt;

use super::audio::opus_duration_us;

/// How every page begins (RFC 3533 section 6).
pub const CAPTURE_PATTERN: &[u8] = b"OggS";
/// The length of a page's header without its segment table, in bytes.
const PAGE_HEAD: usize = 27;
/// The longest packet that the firmware holds, in bytes. The comments of the file are a packet too.
const MAX_PACKET: usize = 2048;
/// The durations of a packet that the firmware's decoder takes, in milliseconds.
const DURATIONS_MS: [u32; 8] = [5, 10, 20, 40, 60, 80, 100, 120];
/// A page's flags.
const CONTINUED: u8 = 1;
const FIRST: u8 = 2;
const LAST: u8 = 4;

/// What a good file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OggOpus {
    /// Packets of audio, at least one.
    pub packets: usize,
    /// How long they play, in milliseconds.
    pub duration_ms: u64,
}

/// Checks a whole file.
///
/// # Errors
/// The first reason why a device would not play it to its end.
pub fn check(file: &[u8]) -> Result<OggOpus, BadOggOpus> {
    let mut stream = Stream::default();
    let mut rest = file;
    while !rest.is_empty() {
        rest = stream.page(rest)?;
    }
    match stream.found {
        _ if file.is_empty() => Err(BadOggOpus::NotOgg),
        _ if !stream.ended || stream.continued => Err(BadOggOpus::NoEnd),
        OggOpus { packets: 0, .. } => Err(BadOggOpus::NoAudio),
        found => Ok(found),
    }
}

/// Why a file is not taken. Pages and packets of audio count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadOggOpus {
    /// It does not begin as an Ogg file does.
    NotOgg,
    /// Something else than a page follows this many pages.
    NotPage(u32),
    /// It ends within this page.
    Cut(u32),
    /// A page says that the format has this version.
    Version(u8),
    /// The checksum of this page is wrong.
    Checksum(u32),
    /// A second stream begins on this page, beside or behind the first one.
    SecondStream(u32),
    /// This page has another number, or does not continue what the page before it has begun.
    Order(u32),
    /// Pages follow the last one of the stream.
    AfterEnd(u32),
    /// No page is marked as the stream's last, or a packet is not complete.
    NoEnd,
    /// A packet on this page is too long.
    LongPacket(u32),
    /// The stream does not begin with a header of Opus: Vorbis, FLAC or something else.
    NotOpus,
    /// The header of Opus has a version or a channel mapping that the firmware does not know.
    Header,
    /// This many channels.
    Channels(u8),
    /// The second packet is not the comments.
    NoTags,
    /// A header shares its page with another packet.
    SharedPage(u32),
    /// This packet is not Opus.
    Packet(usize),
    /// This packet plays for that many microseconds.
    Duration(usize, u32),
    /// There is no packet of audio.
    NoAudio,
}

impl fmt::Display for BadOggOpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOgg => f.write_str("it does not begin with OggS, so it is no Ogg file"),
            Self::NotPage(page) => write!(f, "what follows its first {page} pages is no Ogg page"),
            Self::Cut(page) => write!(f, "it is cut off within page {page}"),
            Self::Version(version) => write!(f, "its Ogg version is {version}, allowed: 0"),
            Self::Checksum(page) => write!(f, "the checksum of page {page} is wrong, so it is damaged"),
            Self::SecondStream(page) => write!(f, "a second stream begins on page {page}, allowed: one"),
            Self::Order(page) => write!(f, "page {page} does not continue the one before it"),
            Self::AfterEnd(page) => write!(f, "page {page} follows the last page of the stream"),
            Self::NoEnd => f.write_str("its last page is not marked as the last, so it is cut off"),
            Self::LongPacket(page) => {
                write!(
                    f,
                    "a packet on page {page} has more than {MAX_PACKET} bytes, the most that devices hold (the comments count too)"
                )
            }
            Self::NotOpus => f.write_str("its stream is not Opus"),
            Self::Header => f.write_str(
                "its Opus header has an unknown version or channel mapping, allowed: version 1, mapping 0",
            ),
            Self::Channels(channels) => write!(f, "it has {channels} channels, allowed: 1 (mono)"),
            Self::NoTags => f.write_str("its second packet is not OpusTags"),
            Self::SharedPage(page) => write!(f, "a header shares page {page} with another packet"),
            Self::Packet(packet) => write!(f, "packet {packet} is not well-formed Opus"),
            Self::Duration(packet, us) => {
                let durations = DURATIONS_MS.map(|ms| ms.to_string()).join(", ");
                let ms = f64::from(*us) / 1000.0;
                write!(f, "packet {packet} plays for {ms} ms, allowed: {durations}")
            }
            Self::NoAudio => f.write_str("it has no audio"),
        }
    }
}

impl std::error::Error for BadOggOpus {}

/// What the pages so far have shown.
#[derive(Default)]
struct Stream {
    pages: u32,
    serial: u32,
    ended: bool,
    /// The packet that goes on: at most [`MAX_PACKET`] bytes.
    packet: Vec<u8>,
    /// Whether it goes on with the next page.
    continued: bool,
    /// Complete headers: OpusHead, OpusTags.
    headers: u8,
    found: OggOpus,
}

impl Stream {
    /// Checks the page at the beginning of `bytes`, and returns what follows it.
    fn page<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], BadOggOpus> {
        let number = self.pages;
        let start = &bytes[..bytes.len().min(CAPTURE_PATTERN.len())];
        if !CAPTURE_PATTERN.starts_with(start) {
            return Err(if number == 0 { BadOggOpus::NotOgg } else { BadOggOpus::NotPage(number) });
        }
        let cut = BadOggOpus::Cut(number);
        let (head, rest) = bytes.split_first_chunk::<PAGE_HEAD>().ok_or(cut)?;
        let [
            _,
            _,
            _,
            _,
            version,
            flags,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            s0,
            s1,
            s2,
            s3,
            n0,
            n1,
            n2,
            n3,
            c0,
            c1,
            c2,
            c3,
            segments,
        ] = *head;
        if version != 0 {
            return Err(BadOggOpus::Version(version));
        }
        let (table, rest) = rest.split_at_checked(segments.into()).ok_or(cut)?;
        let length = table.iter().map(|length| usize::from(*length)).sum();
        let (body, rest) = rest.split_at_checked(length).ok_or(cut)?;
        let mut crc = checksum(0, &head[..22]);
        crc = checksum(crc, &[0; 4]);
        crc = checksum(crc, &head[26..]);
        crc = checksum(checksum(crc, table), body);
        if crc != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(BadOggOpus::Checksum(number));
        }
        let (serial, sequence) = (u32::from_le_bytes([s0, s1, s2, s3]), u32::from_le_bytes([n0, n1, n2, n3]));
        if number > 0 && (serial != self.serial || flags & FIRST != 0) {
            return Err(BadOggOpus::SecondStream(number));
        }
        if self.ended {
            return Err(BadOggOpus::AfterEnd(number));
        }
        if sequence != number
            || (flags & CONTINUED != 0) != self.continued
            || (number == 0 && flags & FIRST == 0)
        {
            return Err(BadOggOpus::Order(number));
        }
        self.serial = serial;
        self.ended = flags & LAST != 0;
        self.segments(table, body)?;
        self.pages += 1;
        Ok(rest)
    }

    /// Joins the segments of a page to packets: one of 255 bytes goes on (RFC 3533 section 5).
    fn segments(&mut self, table: &[u8], mut body: &[u8]) -> Result<(), BadOggOpus> {
        for (index, length) in table.iter().enumerate() {
            let (segment, rest) = body.split_at(usize::from(*length));
            body = rest;
            if self.packet.len() + segment.len() > MAX_PACKET {
                return Err(BadOggOpus::LongPacket(self.pages));
            }
            self.packet.extend_from_slice(segment);
            self.continued = *length == u8::MAX;
            if self.continued {
                continue;
            }
            let is_header = self.headers < 2;
            let packet = std::mem::take(&mut self.packet);
            self.packet(&packet)?;
            self.packet = packet;
            self.packet.clear();
            // RFC 7845 section 3: the page that ends a header holds nothing behind it.
            if is_header && index + 1 < table.len() {
                return Err(BadOggOpus::SharedPage(self.pages));
            }
        }
        Ok(())
    }

    fn packet(&mut self, packet: &[u8]) -> Result<(), BadOggOpus> {
        match self.headers {
            0 => check_head(packet)?,
            1 if packet.starts_with(b"OpusTags") => {}
            1 => return Err(BadOggOpus::NoTags),
            _ => {
                let index = self.found.packets;
                let us = opus_duration_us(packet).ok_or(BadOggOpus::Packet(index))?;
                if !us.is_multiple_of(1000) || !DURATIONS_MS.contains(&(us / 1000)) {
                    return Err(BadOggOpus::Duration(index, us));
                }
                self.found.packets += 1;
                self.found.duration_ms += u64::from(us / 1000);
                return Ok(());
            }
        }
        self.headers += 1;
        Ok(())
    }
}

/// Checks the identification header (RFC 7845 section 5.1).
fn check_head(packet: &[u8]) -> Result<(), BadOggOpus> {
    let Some(fields) = packet.strip_prefix(b"OpusHead") else { return Err(BadOggOpus::NotOpus) };
    // Version, channels, pre-skip, input sample rate, output gain, channel mapping family.
    let [version, channels, _, _, _, _, _, _, _, _, mapping] = *fields else { return Err(mapped(fields)) };
    match (version, channels, mapping) {
        (1, 1, 0) => Ok(()),
        (1, channels, 0) => Err(BadOggOpus::Channels(channels)),
        _ => Err(BadOggOpus::Header),
    }
}

/// What is wrong with a header of another length: with more than two channels it has a mapping table.
fn mapped(fields: &[u8]) -> BadOggOpus {
    match *fields {
        [1, channels, ..] if channels > 1 => BadOggOpus::Channels(channels),
        _ => BadOggOpus::Header,
    }
}

/// The checksum of Ogg pages: CRC-32 with the polynomial 04c11db7, no reflection, initial value and final xor 0 (RFC 3533 section
/// 6). `crc` is that of the bytes before. Eight bytes at a time, which is three times as fast as one: the loop waits for a whole
/// file, 1 ms for 1 MiB.
pub(crate) fn checksum(crc: u32, bytes: &[u8]) -> u32 {
    let entry = |table: usize, byte: u8| CRC_TABLES[table][usize::from(byte)];
    let (chunks, rest) = bytes.as_chunks::<8>();
    let crc = chunks.iter().fold(crc, |crc, &[a, b, c, d, e, f, g, h]| {
        let [a, b, c, d] = (crc ^ u32::from_be_bytes([a, b, c, d])).to_be_bytes();
        let high = entry(7, a) ^ entry(6, b) ^ entry(5, c) ^ entry(4, d);
        high ^ entry(3, e) ^ entry(2, f) ^ entry(1, g) ^ entry(0, h)
    });
    rest.iter().fold(crc, |crc, byte| crc << 8 ^ entry(0, (crc >> 24) as u8 ^ byte))
}

/// The checksum of each byte with as many zeros behind it as the table's number says.
static CRC_TABLES: [[u32; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut index = 0;
    while index < 256 {
        let mut crc = (index as u32) << 24;
        let mut bits = 0;
        while bits < 8 * 8 {
            crc = crc << 1 ^ (if crc >> 31 == 1 { 0x04c1_1db7 } else { 0 });
            bits += 1;
            if bits % 8 == 0 {
                tables[bits / 8 - 1][index] = crc;
            }
        }
        index += 1;
    }
    tables
};

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
