//! The shell's part in the simulated network: it carries out actions and the effects of calls between devices, and checks them.

use std::net::SocketAddr;

use super::*;

/// More bytes than a core with full queues retains.
pub(super) const MAX_RETAINED_BYTES: usize = 1024 * 1024;

/// One session of a device: its connection, its core and its WebSocket.
pub(super) struct NetworkSession {
    pub(super) core: Core,
    pub(super) device: usize,
    /// The number of the device's connection.
    pub(super) connection: u64,
    pub(super) connected: bool,
    pub(super) websocket: Option<NetworkWebSocket>,
    /// When the last message of the device arrives.
    pub(super) last_uplink_arrival: Instant,
    pub(super) since: Instant,
    /// Another session replaced this one.
    pub(super) replaced: bool,
}

/// A WebSocket to a chat server, open or being opened.
pub(super) struct NetworkWebSocket {
    pub(super) number: u64,
    pub(super) url: String,
    pub(super) open: bool,
    /// When the last message of the server arrives.
    pub(super) last_downlink_arrival: Instant,
    pub(super) hello_sent: bool,
    pub(super) dialled_at: Instant,
    pub(super) opened_at: Instant,
    /// Another server could be tried instead.
    pub(super) has_alternative: bool,
}

impl NetworkSession {
    pub(super) fn new(core: Core, device: usize, now: Instant) -> Self {
        Self {
            core,
            device,
            connection: 0,
            connected: true,
            websocket: None,
            last_uplink_arrival: now,
            since: now,
            replaced: false,
        }
    }
}

/// A call. Its index in the list is its ssrc.
pub(super) struct NetworkCall {
    pub(super) device: usize,
    pub(super) key: [u8; 16],
    /// The id in the hello reply.
    pub(super) session_id: Option<String>,
    /// The number of datagrams that the device sent, and the highest accepted one.
    pub(super) datagrams_sent: u32,
    last_sequence_accepted: u32,
    /// The packets behind it. Six in order take the window back.
    late: u32,
    pub(super) ended: bool,
    /// The number of datagrams for the device.
    datagrams_received: u32,
    keep_alive: Option<Box<[u8]>>,
    /// The device hung up, so it gets no goodbye.
    hung_up: bool,
    goodbyes: u32,
}

impl SimulatedNetwork {
    /// A new connection: it continues the call of the older one, or replaces that connection, as in `net::gateway::admission`.
    pub(super) fn connect(&mut self, device: usize) {
        let mac_ = mac(device).underscored();
        let id = format!("GID_test@@@{mac_}@@@{mac_}");
        let newer = self.shell.connect([192, 0, 2, device as u8].into(), connect_packet(&id, 0));
        self.connections[device] += 1;
        let connection = self.connections[device];
        let older = self.session_by_device[device];
        let keep = !self.shell.config.mqtt.resume_grace.is_zero();
        if let Some(older) = older.filter(|s| keep && self.sessions[*s].core.has_call()) {
            self.log(format_args!("[{older}] device {device} is back"));
            self.coverage.insert("resumed");
            // Messages in flight on the older connection are lost.
            self.in_flight.retain(|_, message| !matches!(message, InFlight::Text(s, _) | InFlight::Disconnect(s) | InFlight::ConnectionLost(s) if *s == older));
            let session = &mut self.sessions[older];
            (session.connected, session.connection) = (true, connection);
            session.last_uplink_arrival = self.shell.now;
            return self.drive(older, |core, cx| core.take_over(newer, cx));
        }
        let s = self.sessions.len();
        self.sessions
            .push(NetworkSession { connection, ..NetworkSession::new(newer, device, self.shell.now) });
        self.session_by_device[device] = Some(s);
        self.log(format_args!("[{s}] device {device} connects"));
        if let Some(older) = older {
            self.sessions[older].replaced = true;
            self.drive(older, Core::on_replaced);
        }
        self.drive(s, |core, cx| core.on_admission(Admission::Accepted, cx));
    }

    pub(super) fn deliver(&mut self, at: Instant, message: InFlight) {
        self.log(format_args!("{message:?}"));
        match message {
            InFlight::Text(s, text) if self.sessions[s].connected => {
                if let Some(ssrc) = self.sessions[s].core.ssrc().filter(|_| text.contains("goodbye")) {
                    self.calls[ssrc as usize].hung_up = true;
                }
                // A message outside a call is answered with a goodbye that ends no call.
                let stray = !self.sessions[s].core.has_call();
                let before: u32 = self.calls.iter().map(|call| call.goodbyes).sum();
                self.drive(s, |core, cx| core.on_packet(publish_packet(text.as_bytes()), cx));
                let after: u32 = self.calls.iter().map(|call| call.goodbyes).sum();
                assert!(!stray || text.contains("hello") || before == after, "{text}");
            }
            InFlight::Disconnect(s) if self.sessions[s].connected => {
                if let Some(ssrc) = self.sessions[s].core.ssrc() {
                    self.calls[ssrc as usize].hung_up = true;
                }
                self.drive(s, |core, cx| core.on_packet(Packet::Disconnect, cx));
            }
            InFlight::ConnectionLost(s) if self.sessions[s].connected => {
                self.drive(s, Core::on_connection_lost)
            }
            InFlight::Datagram(ssrc, datagram) => self.uplink(ssrc, datagram),
            InFlight::DialResult(s, number, outcome) if self.is_current_websocket(s, number) => match outcome
            {
                Ok(()) => {
                    let now = self.shell.now;
                    let ws = self.websocket(s);
                    (ws.open, ws.opened_at) = (true, now);
                    self.sessions[s].core.on_dial_stage(SetupStage::Connect, now);
                    self.drive(s, Core::on_backend_open);
                }
                Err(stage) => {
                    self.coverage.extend((stage == BackendStage::Resolve).then_some("resolve failed"));
                    self.close_websocket(s, BackendClosed::Failed(BackendFailure::new(stage, "broken")));
                }
            },
            InFlight::ServerText(s, number, text)
                if self.is_current_websocket(s, number) && self.websocket(s).open =>
            {
                self.websocket(s).hello_sent |= text.contains("hello");
                self.drive(s, |core, cx| core.on_backend_text(&text, cx));
            }
            InFlight::ServerAudio(s, number, n)
                if self.is_current_websocket(s, number) && self.websocket(s).open =>
            {
                match self.shell.downlink(&mut self.sessions[s].core, &frame(n)) {
                    Ok(Some((_, datagram))) => self.check_encrypted(s, &datagram),
                    Ok(None) => self.drive(s, Core::on_device_heard),
                    Err(_) => {}
                }
            }
            InFlight::ServerClosed(s, number, gone) if self.is_current_websocket(s, number) => {
                self.close_websocket(s, gone)
            }
            InFlight::ToDevice(device, connection, message) => {
                self.arrive_at_device(at, device, connection, message);
            }
            InFlight::DatagramToDevice(device, bytes) => self.datagram_arrives_at_device(at, device, &bytes),
            // Its connection is closed.
            _ => {}
        }
    }

    fn close_websocket(&mut self, s: usize, gone: BackendClosed) {
        self.sessions[s].websocket = None;
        self.drive(s, |core, cx| core.on_backend_closed(gone, cx));
    }

    fn is_current_websocket(&self, s: usize, number: u64) -> bool {
        self.sessions[s].websocket.as_ref().is_some_and(|ws| ws.number == number)
    }

    fn websocket(&mut self, s: usize) -> &mut NetworkWebSocket {
        self.sessions[s].websocket.as_mut().expect("it was checked before")
    }

    fn uplink(&mut self, ssrc: u32, mut datagram: Vec<u8>) {
        let Some(s) = self.sessions.iter().position(|session| session.core.ssrc() == Some(ssrc)) else {
            return;
        };
        let from = SocketAddr::new(self.sessions[s].core.ip(), 4_000);
        let sequence = UdpHeader::parse(&datagram).unwrap().sequence;
        let outcome = self.shell.uplink(&mut self.sessions[s].core, from, &mut datagram);
        let call = &mut self.calls[ssrc as usize];
        let expected = match sequence.cmp(&call.last_sequence_accepted) {
            std::cmp::Ordering::Greater => None,
            _ => Some(()),
        };
        match outcome {
            Err(DropReason::Duplicate | DropReason::Late | DropReason::TooOld) => {
                assert!(expected.is_some(), "a new packet was not accepted");
                call.late += 1;
                self.coverage.insert("twice");
                return;
            }
            Err(DropReason::NoServer) => call.last_sequence_accepted = sequence,
            Err(other) => panic!("{other:?}"),
            Ok(_) => {
                if expected.is_some() {
                    assert!(call.late >= 5, "each packet is accepted once and in order");
                    call.late = 0;
                }
                call.last_sequence_accepted = sequence;
            }
        }
        match outcome {
            Ok(Uplink::Server { device_heard: true, .. }) => self.drive(s, Core::on_device_heard),
            Ok(Uplink::OtherDevice(payload)) => self.relay(s, &datagram[HEADER_LEN..HEADER_LEN + payload]),
            Ok(Uplink::Silence) => {
                let mut out = [0; HEADER_LEN + MAX_PAYLOAD];
                if let Ok(encrypted) =
                    self.sessions[s].core.ringing_silence(&mut out, &self.shell.config, self.shell.now)
                {
                    self.check_encrypted(s, &out[..encrypted.datagram_len]);
                }
            }
            _ => {}
        }
    }

    fn relay(&mut self, s: usize, opus: &[u8]) {
        let peer =
            self.device_calls.peer(mac(self.sessions[s].device)).expect("a connected device has a peer");
        let other = self.session_of(peer).expect("it has a session");
        let mut out = [0; HEADER_LEN + MAX_PAYLOAD];
        if let Ok(encrypted) =
            self.sessions[other].core.relay(opus, &mut out, &self.shell.config, self.shell.now)
        {
            self.coverage.insert("talked");
            self.check_encrypted(other, &out[..encrypted.datagram_len]);
        }
    }

    /// Checks one datagram for the device of this session.
    fn check_encrypted(&mut self, s: usize, bytes: &[u8]) {
        let header = UdpHeader::parse(bytes).unwrap();
        let call = &mut self.calls[header.ssrc as usize];
        assert_eq!(call.device, self.sessions[s].device, "encrypted for its own device");
        if header.sequence == 0 {
            let first = call.keep_alive.get_or_insert_with(|| bytes.into());
            assert_eq!(**first, *bytes, "a keep-alive always has the same bytes");
            return self.send_datagram_to_device(s, bytes);
        }
        call.datagrams_received += 1;
        assert_eq!(header.sequence, call.datagrams_received, "downlink sequences go up by one");
        let key = call.key;
        assert!(self.headers_used.insert((key, header.to_bytes())), "no (key, header) is used twice");
        self.send_datagram_to_device(s, bytes);
    }

    // ----- actions ------------------------------------------------------------------------------------------------

    /// Lets a core decide, carries out its actions, and checks that each ended call got its goodbye.
    pub(super) fn drive(&mut self, s: usize, decide: impl FnOnce(&mut Core, &mut Context<'_>)) {
        let mut out = Vec::new();
        self.shell.decide(&mut self.sessions[s].core, &mut out, decide);
        let connected = self.sessions[s].connected;
        let mut ended = Vec::new();
        for action in out {
            self.log(format_args!("[{s}]   {action:?}"));
            self.coverage.extend(coverage_point(&action));
            if let Action::CallEnded(summary) = &action {
                ended.push((summary.ssrc.expect("it has credentials") as usize, summary.reason));
            }
            self.apply_action(s, action);
        }
        for (ssrc, reason) in ended {
            use EndReason::*;
            let call = &self.calls[ssrc];
            // The goodbye to a device that is in no call has an empty id.
            if reason == DeviceNotInCall {
                continue;
            }
            let own =
                matches!(reason, DeviceGoodbye | DeviceDisconnected | DeviceLost | DeviceError | Replaced);
            let expected = u32::from(connected && !own && !call.hung_up);
            assert_eq!(call.goodbyes, expected, "goodbye once for call {ssrc}, which ended by {reason:?}");
        }
    }

    fn apply_action(&mut self, s: usize, action: Action) {
        match action {
            Action::GenerateCredentials => {
                let credentials = generate_credentials(self.calls.len() as u32, &mut self.rng);
                self.calls.push(NetworkCall {
                    device: self.sessions[s].device,
                    key: credentials.key,
                    session_id: None,
                    datagrams_sent: 0,
                    last_sequence_accepted: 0,
                    late: 0,
                    datagrams_received: 0,
                    keep_alive: None,
                    ended: false,
                    hung_up: false,
                    goodbyes: 0,
                });
                self.drive(s, |core, cx| core.on_credentials(credentials, cx));
            }
            Action::Publish(text) => {
                self.on_publish(s, &text);
                self.send_to_device(s, ToDevice::Text(text));
            }
            Action::Dial(request) => self.dial(s, request.server.url.clone()),
            Action::SendText(text) => {
                let number = self.sessions[s]
                    .websocket
                    .as_ref()
                    .filter(|ws| ws.open)
                    .expect("an open WebSocket")
                    .number;
                if text.contains(r#""hello""#) && self.rng.percent(90) {
                    let id = self.rng.percent(80).then(|| format!(r#","session_id":"srv-{number}""#));
                    let hello = format!(r#"{{"type":"hello"{}}}"#, id.unwrap_or_default());
                    self.send_from_server(s, InFlight::ServerText(s, number, hello));
                }
            }
            Action::SendPing => {
                let url =
                    self.sessions[s].websocket.as_ref().map(|ws| ws.url.clone()).expect("an open WebSocket");
                if !self.servers_down.contains(&url) {
                    self.sessions[s].core.on_backend_activity(self.shell.now);
                }
            }
            Action::CloseBackend(_) => self.sessions[s].websocket = None,
            Action::CommandResult { ticket, result } => {
                self.pending_commands.remove(&ticket).expect("an operator is answered once");
                self.coverage.insert(if result == Err(CommandError::Busy) { "busy" } else { "asked" });
            }
            Action::LateCommandResult { ticket, .. } => {
                assert!(!self.pending_commands.contains_key(&ticket), "it had timed out");
            }
            Action::SendDatagram(_, bytes) => self.check_encrypted(s, &bytes),
            Action::CallEnded(summary) => {
                let ssrc = summary.ssrc.expect("it has credentials") as usize;
                assert!(!std::mem::replace(&mut self.calls[ssrc].ended, true), "a call ends once");
                match &mut self.sessions[s].websocket {
                    // It goes on for the device's next hello, from which its time limit counts.
                    Some(ws) if summary.reason == EndReason::Replaced && !summary.answered => {
                        ws.dialled_at = self.shell.now;
                    }
                    ws => assert!(ws.is_none(), "no WebSocket outlives its call"),
                }
                if matches!(summary.state, CallState::Ringing | CallState::InDeviceCall) {
                    let device = mac(self.sessions[s].device);
                    self.change_device_calls(|table, cx| table.on_call_ended(device, cx));
                }
            }
            Action::CloseDevice(_) => {
                self.sessions[s].connected = false;
                self.send_to_device(s, ToDevice::Closed);
                let device = self.sessions[s].device;
                if self.sessions[s].core.is_closed() && self.session_by_device[device] == Some(s) {
                    self.session_by_device[device] = None;
                    self.change_device_calls(|table, cx| table.on_device_disconnected(mac(device), cx));
                }
            }
            _ => {}
        }
    }

    fn on_publish(&mut self, s: usize, text: &str) {
        assert!(
            self.sessions[s].connected && !self.sessions[s].replaced,
            "sent to a closed connection: {text}"
        );
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        let call = self.sessions[s].core.ssrc().map(|ssrc| ssrc as usize);
        match value["type"].as_str() {
            Some("hello") => {
                let id = value["session_id"].as_str().unwrap().to_owned();
                let key = value["udp"]["key"].as_str().unwrap();
                // If all servers have failed, the call of this hello has ended already.
                let told =
                    self.calls.iter_mut().rev().find(|call| data_encoding::HEXLOWER.encode(&call.key) == key);
                let told = told.expect("a known key");
                assert_eq!(told.session_id.replace(id), None, "one hello reply per call");
                assert!(self.keys_sent.insert(told.key), "no key is used for two hellos");
            }
            Some("goodbye") => {
                let id = value["session_id"].as_str().unwrap_or_default();
                let named = self
                    .calls
                    .iter_mut()
                    .rev()
                    .find(|call| call.session_id.as_deref() == Some(id) && !call.ended);
                match (named, call) {
                    (Some(named), _) => named.goodbyes += 1,
                    // The answer to a message outside a call or after the device hung up, or one to a call that ended before.
                    (None, call) => {
                        let has_ended = self.calls.iter().any(|call| call.session_id.as_deref() == Some(id));
                        assert!(has_ended || call.is_none_or(|ssrc| self.calls[ssrc].hung_up), "{text}");
                    }
                }
            }
            _ => {}
        }
    }

    fn dial(&mut self, s: usize, url: String) {
        assert!(self.sessions[s].websocket.is_none(), "the previous WebSocket is closed first");
        self.serial += 1;
        let number = self.serial;
        let (open, greeted, now) = (false, false, self.shell.now);
        let answered = self.sessions[s].core.call().is_some_and(|call| call.session_id.is_some());
        let others = self.shell.config.websocket.production.iter().any(|server| server.url != url);
        let ws = NetworkWebSocket {
            number,
            open,
            hello_sent: greeted,
            dialled_at: now,
            opened_at: now,
            has_alternative: answered && others,
            last_downlink_arrival: now,
            url: url.clone(),
        };
        self.sessions[s].websocket = Some(ws);
        let outcome = match self.rng.below(20) {
            // The resolver, the network or the server never answers.
            0..2 => return,
            2 => Err(BackendStage::Resolve),
            _ if self.servers_down.contains(&url) => Err(BackendStage::Connect),
            3 => Err(BackendStage::Upgrade),
            _ => Ok(()),
        };
        self.send_from_server(s, InFlight::DialResult(s, number, outcome));
    }

    // ----- calls between devices, as in `net::device_calls` ---------------------------------------------------------

    fn session_of(&self, mac: Mac) -> Option<usize> {
        self.session_by_device[usize::from(mac.bytes()[5])]
    }

    /// Changes the table, and carries the effects out.
    pub(super) fn change_device_calls(
        &mut self,
        change: impl FnOnce(&mut DeviceCallTable, &mut DeviceCallContext<'_>),
    ) {
        let (mut table, mut out) = (std::mem::take(&mut self.device_calls), Vec::new());
        change(&mut table, &mut DeviceCallContext { now: self.shell.now, devices: self, out: &mut out });
        self.device_calls = table;
        if !out.is_empty() {
            self.log(format_args!("{out:?}"));
        }
        self.apply_effects(out);
    }

    fn apply_effects(&mut self, effects: Vec<DeviceCallEffect>) {
        for effect in effects {
            match effect {
                DeviceCallEffect::Ring(caller) => self.drive_device(caller, Core::start_ringing),
                DeviceCallEffect::Wake { target, nickname } => {
                    self.drive_device(target, |core, cx| core.wake_for_call(&nickname, cx))
                }
                DeviceCallEffect::Accepted { caller, from } => {
                    self.drive_device(caller, |core, cx| core.on_call_accepted(from, cx));
                }
                DeviceCallEffect::Join(joined) => {
                    if self.device_calls.talks_in(joined.mac, joined.far.call) {
                        let both = joined.realtime && joined.peer_realtime;
                        self.coverage.insert("bridged");
                        self.coverage.extend(both.then_some("bridged in realtime"));
                        self.drive_device(joined.mac, |core, cx| core.join_device_call(both, cx));
                    }
                }
                DeviceCallEffect::End(mac, reason) => {
                    self.drive_device(mac, |core, cx| core.end_device_call(reason, cx));
                }
                DeviceCallEffect::Answer(ticket, _) => {
                    assert!(self.device_call_tickets.remove(&ticket), "one answer");
                }
                DeviceCallEffect::Send(..) => panic!("there is one place"),
            }
        }
    }

    fn drive_device(&mut self, mac: Mac, decide: impl FnOnce(&mut Core, &mut Context<'_>)) {
        if let Some(s) = self.session_of(mac) {
            self.drive(s, decide);
        }
    }
}

impl LocalDevices for SimulatedNetwork {
    fn presence(&self, mac: Mac) -> Presence {
        self.session_of(mac).map_or(Presence::Absent, |s| self.sessions[s].core.presence())
    }

    fn listens_in_realtime(&self, mac: Mac) -> bool {
        self.session_of(mac).is_some_and(|s| self.sessions[s].core.listens_in_realtime())
    }
}
