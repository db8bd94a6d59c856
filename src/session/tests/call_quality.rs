//! What a call's report says of faults that were made on purpose.

use super::*;

const LISTEN_START: &str = r#"{"type":"listen","state":"start","mode":"auto"}"#;
const STT: &str = r#"{"type":"stt","text":"hi"}"#;
const FRAME_MS: u64 = 60;

/// A call in which the chat server is not pinged.
fn quiet_call() -> Scenario {
    let mut scenario = Scenario::online();
    scenario.shell.config.websocket.ping_interval = Duration::ZERO;
    scenario.start_call();
    scenario
}

impl Scenario {
    fn report(&self) -> (CallReport, CallSlice) {
        self.core.call_report(self.shell.now).unwrap()
    }

    fn verdict(&self) -> Verdict {
        self.report().0.verdict
    }

    /// Packets of the device, one in 60 ms, except those that `lost` names.
    fn send_audio(&mut self, sequences: std::ops::Range<u32>, lost: impl Fn(u32) -> bool) {
        for sequence in sequences {
            self.wait(FRAME_MS);
            self.core.refresh_keep_alive(self.shell.now);
            if !lost(sequence) {
                self.uplink(sequence, b"\x08x").unwrap();
            }
        }
    }

    /// Frames of the server, one in 60 ms.
    fn send_speech(&mut self, frames: u32) {
        for number in 0..frames {
            self.wait(FRAME_MS);
            self.downlink(&frame_with_header(number, b"\x08x")).unwrap();
        }
    }

    fn end(&mut self) -> CallSummary {
        summary(&self.device_sends(r#"{"type":"goodbye"}"#)).clone()
    }
}

#[test]
fn ten_seconds_of_loss_are_seen_in_a_long_call_while_it_goes_on() {
    let mut scenario = quiet_call();
    scenario.device_sends(LISTEN_START);
    // Ten seconds have 166 packets. In the third ten seconds each eighth is lost.
    let lost = |sequence: u32| (340..490).contains(&sequence) && sequence.is_multiple_of(8);
    scenario.send_audio(1..330, lost);
    assert_eq!(scenario.verdict(), Verdict::Good);
    scenario.send_audio(330..520, lost);
    let (report, last) = scenario.report();
    assert_eq!(report.verdict, Verdict::LossyUplink);
    assert!((10.0..13.0).contains(&report.worst_loss_percent), "{report:?}");
    assert!((3.0..5.0).contains(&report.loss_percent), "{report:?}");
    assert!(last.lost > 15 && last.packets_up < 150, "the last ten seconds that are over: {last:?}");
    scenario.send_audio(520..3000, lost);
    let (report, last) = scenario.report();
    assert_eq!((report.verdict, last.lost), (Verdict::LossyUplink, 0), "the worst is remembered");
    assert!(report.loss_percent < 1.0, "{report:?}");
    let summary = scenario.end();
    assert_eq!(summary.report.verdict, Verdict::LossyUplink);
    assert_eq!(summary.settled_lost, summary.stats.lost);
    let lost: Vec<_> = summary.series.slices.iter().map(|slice| slice.lost).collect();
    assert_eq!((lost.len(), lost.iter().sum::<u32>()), (18, summary.stats.lost as u32), "{lost:?}");
    assert!(lost[2] > 15, "{lost:?}");
}

#[test]
fn nine_percent_of_loss_have_a_verdict() {
    let mut scenario = quiet_call();
    scenario.send_audio(1..200, |sequence| sequence % 11 == 5);
    let report = scenario.end().report;
    assert_eq!((report.verdict, report.loss_percent), (Verdict::LossyUplink, 9.0));
}

#[test]
fn a_counter_of_loss_never_falls() {
    let mut scenario = quiet_call();
    scenario.send_audio(1..170, |sequence| sequence == 160);
    let settled = |scenario: &Scenario| scenario.core.call().unwrap().settled_lost;
    assert_eq!(settled(&scenario), 1);
    assert_eq!(scenario.uplink(160, b"\x08x"), Err(DropReason::Late));
    scenario.send_audio(170..500, |_| false);
    assert_eq!((scenario.core.call().unwrap().stats.lost, settled(&scenario)), (0, 1));
}

#[test]
fn jitter_has_its_median_and_its_worst_ten_seconds() {
    let mut scenario = quiet_call();
    for sequence in 1..800_u32 {
        let late = if (500..600).contains(&sequence) && sequence.is_multiple_of(2) { 40 } else { 0 };
        scenario.wait(FRAME_MS - 20 + late);
        scenario.uplink(sequence, b"\x08x").unwrap();
    }
    let report = scenario.end().report;
    assert!(report.worst_jitter_ms > 5.0 && report.median_jitter_ms < 2.0, "{report:?}");
}

#[test]
fn a_device_that_listens_and_is_not_heard() {
    let mut scenario = quiet_call();
    scenario.wait(60_000);
    assert_eq!(scenario.verdict(), Verdict::Good, "it does not listen");
    scenario.device_sends(LISTEN_START);
    scenario.wait(2_900);
    assert_eq!(scenario.verdict(), Verdict::Good);
    scenario.wait(200);
    assert_eq!(scenario.verdict(), Verdict::NoAudio);
    scenario.uplink(1, b"\x08x").unwrap();
    assert_eq!(scenario.verdict(), Verdict::Good, "its audio only came late");
    let report = scenario.end().report;
    assert_eq!((report.verdict, report.first_packet_ms), (Verdict::Good, Some(63_100)));

    let mut scenario = quiet_call();
    scenario.device_sends(LISTEN_START);
    scenario.wait(4_000);
    scenario.server_sends(TTS_START);
    let report = scenario.end().report;
    assert_eq!((report.verdict, report.unheard_ms, report.first_packet_ms), (Verdict::NoAudio, 4_000, None));

    // Before it was answered it could not send.
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    scenario.device_sends(LISTEN_START);
    scenario.wait(2_500);
    scenario.open_backend();
    scenario.server_sends(SERVER_HELLO);
    scenario.wait(1_000);
    assert_eq!(scenario.verdict(), Verdict::Good);
}

#[test]
fn a_gap_in_the_middle_of_speech_is_not_the_pause_before_it() {
    let mut scenario = quiet_call();
    scenario.uplink(1, b"\x08x").unwrap();
    scenario.server_sends(TTS_START);
    scenario.wait(5_000);
    scenario.send_speech(10);
    scenario.wait(140);
    scenario.send_speech(10);
    let (report, _) = scenario.report();
    assert_eq!((report.verdict, report.gaps, report.longest_gap_ms), (Verdict::Good, 1, 140));
    scenario.wait(600);
    scenario.send_speech(10);
    scenario.server_sends(TTS_STOP);
    scenario.wait(9_000);
    scenario.server_sends(TTS_START);
    scenario.send_speech(5);
    let summary = scenario.end();
    let report = summary.report;
    assert_eq!((report.verdict, report.gaps), (Verdict::ServerGaps, 2));
    assert_eq!((report.longest_gap_ms, report.gap_ms), (600, 740));
    assert_eq!(summary.series.slices.iter().map(|slice| slice.gap_ms).sum::<u32>(), 740);
}

#[test]
fn a_slow_server() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    scenario.wait(500);
    scenario.core.on_dial_stage(SetupStage::Connect, scenario.shell.now);
    scenario.wait(100);
    scenario.core.on_dial_stage(SetupStage::Tls, scenario.shell.now);
    scenario.wait(200);
    scenario.core.on_dial_stage(SetupStage::Upgrade, scenario.shell.now);
    scenario.core.on_dial_stage(SetupStage::Upgrade, scenario.shell.now);
    scenario.wait(300);
    scenario.drive(Core::on_backend_open);
    scenario.wait(2_000);
    scenario.server_sends(SERVER_HELLO);
    let setup = SetupTimes {
        total_ms: Some(3_100),
        resolve_ms: 500,
        connect_ms: 100,
        tls_ms: 200,
        upgrade_ms: 300,
        hello_ms: 2_000,
    };
    scenario.wait(1_000);
    let report = scenario.end().report;
    assert_eq!((report.verdict, report.setup), (Verdict::ServerSlow, setup));

    let mut scenario = quiet_call();
    scenario.uplink(1, b"\x08x").unwrap();
    for (sequence, pause, verdict) in [(2, 4_900, Verdict::Good), (3, 5_000, Verdict::ServerSlow)] {
        scenario.device_sends(LISTEN_START);
        scenario.uplink(sequence, b"\x08x").unwrap();
        scenario.server_sends(STT);
        scenario.wait(pause.into());
        assert_eq!(scenario.verdict(), verdict, "{pause}");
        scenario.server_sends(TTS_START);
        scenario.send_speech(1);
        assert_eq!(scenario.report().0.slowest_answer_ms, Some(pause + FRAME_MS as u32));
        scenario.server_sends(TTS_STOP);
    }
    scenario.device_sends(LISTEN_START);
    scenario.server_sends(STT);
    scenario.device_sends(r#"{"type":"abort"}"#);
    scenario.wait(20_000);
    assert_eq!(scenario.report().0.slowest_answer_ms, Some(5_060), "the user did not want it");
}

#[test]
fn a_server_that_fails_is_named_with_the_cause() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    for _ in [A, B] {
        scenario.wait(10);
        scenario.close_backend(failed(BackendStage::Connect));
    }
    let actions = scenario.close_backend(failed(BackendStage::Upgrade));
    let report = &summary(&actions).report;
    assert_eq!(
        (report.verdict, report.failure_count, report.setup.total_ms),
        (Verdict::ServerFailed, 3, None)
    );
    let failures: Vec<_> =
        report.failures.iter().map(|failure| (&*failure.server, failure.stage, failure.after_ms)).collect();
    assert_eq!(
        failures,
        [
            (A, BackendStage::Connect, 10),
            (B, BackendStage::Connect, 20),
            ("ws://c/chat", BackendStage::Upgrade, 20)
        ]
    );
    assert_eq!(&*report.failures[0].cause, "broken");

    let mut scenario = Scenario::with_udp_peer();
    scenario.close_backend(failed(BackendStage::Live));
    scenario.wait(1_000);
    scenario.open_backend();
    scenario.server_sends(SERVER_HELLO);
    let summary = scenario.end();
    assert_eq!((summary.report.verdict, summary.stats.redials), (Verdict::ServerFailed, 1));

    let mut scenario = Scenario::online();
    scenario.shell.config.websocket.production = servers(&[A]);
    scenario.shell.config.websocket.reconnect.give_up_after = Duration::ZERO;
    scenario.shell.config.websocket.call_idle = Duration::ZERO;
    scenario.start_call();
    for _ in 0..100 {
        scenario.close_backend(failed(BackendStage::Connect));
        scenario.core.refresh_keep_alive(scenario.shell.now);
        scenario.wait(40_000);
    }
    let (report, _) = scenario.report();
    assert!(report.failure_count >= 100 && report.failures.len() == 8, "{report:?}");
}

#[test]
fn a_device_that_is_away_and_comes_back() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.lose_connection();
    assert_eq!(scenario.verdict(), Verdict::DeviceLost);
    scenario.wait(3_000);
    scenario.reconnect(DEVICE_IP);
    scenario.uplink(2, b"\x08x").unwrap();
    let (report, _) = scenario.report();
    assert_eq!((report.verdict, report.resumed, report.away_ms), (Verdict::Good, 1, 3_000));
    scenario.lose_connection();
    let actions = scenario.wait(60_000);
    assert_eq!(summary(&actions).report.verdict, Verdict::DeviceLost);
}

#[test]
fn a_refused_call_has_a_report() {
    let mut scenario = Scenario::online();
    scenario.shell.config.mqtt.hello_limit = 1;
    scenario.start_call();
    let actions = scenario.device_sends(HELLO);
    let verdicts: Vec<_> = actions
        .iter()
        .filter_map(|action| match action {
            Action::CallEnded(summary) => Some((summary.reason, summary.report.verdict)),
            _ => None,
        })
        .collect();
    let expected = [(EndReason::Replaced, Verdict::Good), (EndReason::HelloLimit, Verdict::Limited)];
    assert_eq!(verdicts, expected);
}
