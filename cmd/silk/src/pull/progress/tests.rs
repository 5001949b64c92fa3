//! What rows say, and when.

use super::*;

mod waits;

fn row(stage: Stage, received: u64) -> Row {
    Row {
        digest: Digest::of(b"x"),
        diff_id: Digest::of(b"y"),
        size: 2_000_000,
        received,
        stage,
        source: "registry.example".to_owned(),
        rate: 1_000_000.0,
        began: None,
        took: None,
        exists: false,
        is_old: false,
        troubled: false,
    }
}

#[test]
fn each_layer_is_told_of_once_when_it_starts_and_once_when_it_ends() {
    let start = Instant::now();
    let mut lines = Lines::new(start);
    let short = Digest::of(b"x").short();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut rows = vec![row(Stage::Waiting, 0), row(Stage::Here, 2_000_000)];
    assert_eq!(lines.draw(&rows, at(0)), format!("layer 2/2 {short}: here already, 2.0 MB\n"));
    rows[0] = row(Stage::Pulling, 10);
    assert_eq!(lines.draw(&rows, at(1)), format!("layer 1/2 {short}: pulling 2.0 MB from registry.example\n"));
    rows[0].received = 1_000_000;
    assert_eq!(lines.draw(&rows, at(2)), "");
    assert_eq!(lines.draw(&rows, at(5)), "3.0 MB of 4.0 MB at 200.0 kB/s, 1 of 2 layers done\n");
    rows[0].stage = Stage::Unpacking;
    assert_eq!(lines.draw(&rows, at(6)), "");
    rows[0] = row(Stage::Mounted, 1_500_000);
    assert_eq!(lines.draw(&rows, at(6)), format!("layer 1/2 {short}: usable, 1.5 MB of 2.0 MB here\n"));
    rows[0] = Row { took: Some(Duration::from_millis(6500)), ..row(Stage::Done, 2_000_000) };
    assert_eq!(lines.draw(&rows, at(7)), format!("layer 1/2 {short}: done, 2.0 MB in 6.50 s\n"));
    assert_eq!(lines.draw(&rows, at(8)), "");
}

#[test]
fn bars_are_for_terminals_that_have_room_for_them() {
    let board = Board {
        rows: Mutex::default(),
        manifest: Digest::of(b""),
        reference: String::new(),
        silkd: None,
        unasked: Mutex::default(),
        notes: Mutex::default(),
    };
    let shown = |terminal| match Display::new(false, terminal, &board) {
        Display::Bars(_) => "bars",
        Display::Lines(_) => "lines",
        Display::Quiet => "nothing",
    };
    assert_eq!([None, Some(20), Some(71), Some(72)].map(shown), ["lines", "lines", "lines", "bars"]);
}

#[test]
fn bars_say_what_happens() {
    let said = |stage, received| bars::message(&row(stage, received));
    assert_eq!(said(Stage::Waiting, 0), "2.0 MB  waiting");
    assert_eq!(said(Stage::Pulling, 500_000), "500.0 kB / 2.0 MB  1.0 MB/s  from registry.example");
    assert_eq!(said(Stage::Mounted, 500_000), "500.0 kB / 2.0 MB  usable");
    assert_eq!(said(Stage::Unpacking, 2_000_000), "2.0 MB  unpacking");
    assert_eq!(said(Stage::Here, 2_000_000), "2.0 MB  here already");
    let done = Row { took: Some(Duration::from_secs(2)), ..row(Stage::Done, 2_000_000) };
    assert_eq!(bars::message(&done), "2.0 MB  1.0 MB/s  in 2.00 s");
}

#[test]
fn silkd_tells_how_far_a_layer_is() {
    let layer = |state: &str, received| control::Layer {
        state: state.to_owned(),
        blob_received: received,
        source: "mirror.example".to_owned(),
        rate: 7.0,
        ..control::Layer::default()
    };
    let mut pulled = row(Stage::Waiting, 0);
    pulled.told(&layer("waiting", 0), false);
    assert_eq!(pulled.stage, Stage::Waiting);
    pulled.told(&layer("pulling", 5_000_000), false);
    assert_eq!((pulled.stage, pulled.received), (Stage::Pulling, 2_000_000), "never more than there is");
    assert_eq!((pulled.source.as_str(), pulled.rate), ("mirror.example", 7.0));
    pulled.told(&layer("filling", 1_000_000), false);
    assert_eq!((pulled.stage, pulled.received), (Stage::Mounted, 1_000_000));
    pulled.told(&layer("whole", 2_000_000), false);
    assert_eq!(pulled.stage, Stage::Done);
    assert_eq!(pulled.took.map(|took| took.as_secs()), Some(2_000_000 / 7), "by silkd's own rate");
    let mut here = row(Stage::Waiting, 0);
    here.told(&layer("whole", 2_000_000), true);
    assert_eq!((here.stage, here.took), (Stage::Here, None));
}

#[test]
fn without_silkd_a_layer_is_here_already_only_if_it_was() {
    let why = Failure::Late { daemon: Daemon::Silkd, doing: "tell its status".to_owned(), after: PATIENCE };
    let board = Board {
        rows: Mutex::new(vec![row(Stage::Waiting, 0), row(Stage::Waiting, 0)]),
        manifest: Digest::of(b""),
        reference: String::new(),
        silkd: None,
        unasked: Mutex::new(Some(why)),
        notes: Mutex::default(),
    };
    board.exists(0);
    board.is_old(0);
    board.exists(1);
    let stages = || board.rows().iter().map(|row| row.stage).collect::<Vec<_>>();
    assert_eq!(stages(), [Stage::Waiting; 2], "they may be arriving");
    let note =
        "note: how far layers are that silkd fetches is not shown: silkd did not tell its status within 2.00 s\n";
    assert_eq!(*board.notes.lock().unwrap(), [note]);
    board.usable();
    assert_eq!(stages(), [Stage::Here, Stage::Done]);
    assert_eq!(board.summary(), "2 layers, 4.0 MB (1 here already)");
}
