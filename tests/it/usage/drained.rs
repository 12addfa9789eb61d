//! What is in the journal goes into the ledger: in groups, once, and whatever one block of it does.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use diesel_async::RunQueryDsl as _;
use keystead::clock::Clock;
use keystead::db::{self, Conn, Db};
use keystead::each;
use keystead::usage::codec::{Use, UsedKey, UsedToken};
use keystead::usage::{Events, Ledger, Operation, Recorder, Room, Rules};

use super::{HOUR, lines, number};
use crate::support::tables::lines_of;
use crate::support::{Home, both};

both!(
    blocks_of_one_transaction_are_batches_of_their_own_in_their_order,
    blocks_that_were_stored_and_are_still_in_the_journal_count_once,
    a_block_that_the_ledger_does_not_take_holds_up_no_other,
    no_number_of_blocks_that_the_ledger_does_not_take_holds_up_others,
    what_waits_behind_many_blocks_that_are_not_taken_is_reached,
    what_was_passed_by_is_sent_in_turn_with_what_is_new,
    blocks_that_take_the_ledger_too_long_hold_up_no_others,
    a_block_that_was_not_taken_is_told_of_whatever_ended_the_round,
    a_ledger_that_takes_nothing_sets_nothing_aside,
    a_ledger_that_takes_nothing_any_more_sets_little_aside,
    work_that_panics_is_a_defect_and_no_sign_of_a_ledger_that_is_away,
    a_block_that_cannot_be_read_is_given_up_and_the_others_are_stored,
    a_block_of_a_later_version_waits_for_it,
    the_log_of_the_journal_stays_small,
    no_commit_into_the_journal_waits_for_the_disk,
    a_journal_without_room_keeps_counts_and_then_nothing_and_says_so,
    a_journal_without_room_has_counts_within_a_second_and_puts_them_together,
    what_a_journal_does_not_take_is_told_now_and_then_and_kept_when_it_does,
);

const EVENTS: &str = "SELECT COUNT(*) FROM usage_event";
const USES: &str = "SELECT COALESCE(SUM(uses), 0) FROM usage_hour";

/// A journal, and what fills it.
struct Node {
    recorder: Arc<Recorder>,
    ledger: Ledger,
    moved_ms: Arc<AtomicI64>,
}

impl Node {
    async fn new(home: &Home, journal: &Path, name: &str) -> Self {
        let recorder = Arc::new(Recorder::new(true));
        let moved_ms = Arc::new(AtomicI64::new(0));
        let ledger = Ledger::new(
            Arc::clone(&recorder),
            journal.to_owned(),
            home.usage_db(),
            Clock::Shifted(Arc::clone(&moved_ms)),
            name.to_owned(),
        );
        ledger.begin().await.expect("a journal");
        Self {
            recorder,
            ledger,
            moved_ms,
        }
    }

    /// Keeps a block of `uses` uses that were asked for by `caller`.
    async fn keep(&self, caller: &str, uses: i64) {
        self.keep_with(caller, uses, "").await;
    }

    /// With more bytes in each.
    async fn keep_with(&self, caller: &str, uses: i64, more: &str) {
        self.record(caller, uses, more);
        self.ledger.flush().await.expect("it is kept");
    }

    fn record(&self, caller: &str, uses: i64, more: &str) {
        let scopes = ["invoice:read".to_owned()];
        for number in 0..uses {
            self.recorder.record(&Use {
                at: HOUR + number,
                tenant_id: "ten_1",
                key: Some(UsedKey {
                    key_id: "key_1",
                    secret_id: "sec_1",
                    superseded: false,
                    consumer_id: "con_1",
                }),
                service: "billing",
                environment: "live",
                operation: Operation::Verify,
                outcome: "valid",
                required_scopes: &scopes,
                any_scopes: &[],
                met: None,
                cost: 1,
                ip: None,
                method: None,
                path: None,
                user_agent: Some("curl/8"),
                context: None,
                caller,
                request_id: &format!("{caller}-{number}{more}"),
                latency_us: 9,
                token: UsedToken::default(),
            });
        }
    }

    async fn store(&self) -> db::Result<usize> {
        self.ledger.store(Rules::default()).await
    }
}

async fn blocks_of_one_transaction_are_batches_of_their_own_in_their_order(home: Home) {
    let node = Node::new(&home, &home.dir().join("journal.db"), "a").await;
    for block in 1..=20 {
        node.keep(&format!("caller-{block}"), block).await;
    }
    assert_eq!(node.store().await.unwrap(), 20);
    assert_eq!(node.ledger.waiting_bytes(), 0);
    let all: i64 = (1..=20).sum();
    assert_eq!(number(&home, EVENTS).await, all);
    assert_eq!(number(&home, USES).await, all);
    let batches =
        "SELECT number || ' ' || seq || ' ' || events AS line FROM usage_batch ORDER BY seq";
    let expected: Vec<String> = (1..=20).map(|n| format!("{n} {n} {n}")).collect();
    assert_eq!(lines(&home, batches).await, expected);
    let mixed = "SELECT COUNT(*) FROM usage_event WHERE caller <> 'caller-' || batch";
    assert_eq!(number(&home, mixed).await, 0);
}

async fn blocks_that_were_stored_and_are_still_in_the_journal_count_once(home: Home) {
    let (journal, copy) = (home.dir().join("journal.db"), home.dir().join("copy.db"));
    let node = Node::new(&home, &journal, "a").await;
    for block in 0..5 {
        node.keep(&format!("caller-{block}"), 10).await;
    }
    // As it is if the process ends between the ledger's commit and the journal's.
    for end in ["", "-wal"] {
        let named = |path: &Path| format!("{}{end}", path.display());
        std::fs::copy(named(&journal), named(&copy)).unwrap();
    }
    assert_eq!(node.store().await.unwrap(), 5);
    let again = Node::new(&home, &copy, "b").await;
    assert!(again.ledger.is_waiting());
    again.keep("later", 7).await;
    assert_eq!(again.store().await.unwrap(), 1);
    assert!(!again.ledger.is_waiting());
    assert_eq!(number(&home, EVENTS).await, 57);
    assert_eq!(number(&home, USES).await, 57);
    let ids = "SELECT COUNT(DISTINCT request_id) FROM usage_event";
    assert_eq!(number(&home, ids).await, 57);
    assert_eq!(number(&home, "SELECT MAX(seq) FROM usage_batch").await, 6);
}

/// From now on the table of events takes none that `callers` asked for, as a text about `NEW` or a row.
async fn refuse(home: &Home, callers: &str) {
    let sqlite = format!(
        "CREATE TRIGGER refuse BEFORE INSERT ON usage_event WHEN NEW.caller {callers} \
         BEGIN SELECT RAISE(ABORT, 'refused'); END"
    );
    let postgres =
        format!("ALTER TABLE usage_event ADD CONSTRAINT refuse CHECK (NOT caller {callers})");
    change(&home.usage_db(), sqlite, postgres).await;
}

async fn refuse_no_more(home: &Home) {
    let sqlite = "DROP TRIGGER refuse".to_owned();
    let postgres = "ALTER TABLE usage_event DROP CONSTRAINT refuse".to_owned();
    change(&home.usage_db(), sqlite, postgres).await;
}

async fn change(db: &Db, sqlite: String, postgres: String) {
    db.write(async move |conn: &mut Conn| -> db::Result<()> {
        let sql = match conn {
            Conn::Sqlite(_) => sqlite,
            Conn::Postgres(_) => postgres,
        };
        each!(conn, c => diesel::sql_query(sql).execute(c).await)?;
        Ok(())
    })
    .await
    .expect("it is changed");
}

async fn a_block_that_the_ledger_does_not_take_holds_up_no_other(home: Home) {
    let node = Node::new(&home, &home.dir().join("journal.db"), "a").await;
    refuse(&home, "= 'poison'").await;
    for caller in ["first", "poison", "second", "third"] {
        node.keep(caller, 10).await;
    }
    assert_eq!(node.store().await.unwrap(), 3);
    assert_eq!(node.ledger.aside(), 1);
    assert_eq!(number(&home, EVENTS).await, 30);
    assert_eq!(number(&home, USES).await, 30);
    // It waits; what comes later passes it by, and is not told that anything is wrong.
    assert!(node.ledger.is_waiting());
    node.keep("fourth", 10).await;
    assert_eq!(node.store().await.unwrap(), 1);
    node.moved_ms.fetch_add(61_000, Ordering::SeqCst);
    assert_eq!(node.store().await.unwrap(), 0);
    assert_eq!(number(&home, USES).await, 40);
    assert_eq!(node.ledger.lost(), 0);

    refuse_no_more(&home).await;
    assert_eq!(node.store().await.unwrap(), 0);
    node.moved_ms.fetch_add(61_000, Ordering::SeqCst);
    assert_eq!(node.store().await.unwrap(), 1);
    assert!(!node.ledger.is_waiting());
    assert_eq!(node.ledger.aside(), 0);
    assert_eq!(number(&home, EVENTS).await, 50);
    assert_eq!(number(&home, USES).await, 50);
    let numbers = "SELECT number || ' ' || seq AS line FROM usage_batch ORDER BY seq";
    let expected = ["1 1", "3 2", "4 3", "5 4", "2 5"];
    assert_eq!(lines(&home, numbers).await, expected);
}

async fn no_number_of_blocks_that_the_ledger_does_not_take_holds_up_others(home: Home) {
    let node = Node::new(&home, &home.dir().join("journal.db"), "a").await;
    refuse(&home, "= 'poison'").await;
    for _ in 0..9 {
        node.keep("poison", 10).await;
    }
    assert!(node.store().await.is_err(), "none is taken");
    for block in 1..=3 {
        node.keep(&format!("caller-{block}"), 10).await;
        assert!(node.store().await.unwrap() > 0);
        assert_eq!(number(&home, USES).await, block * 10);
    }
    let mut aside = node.ledger.aside();
    for _ in 0..9 {
        node.store().await.unwrap_or_default();
        aside = aside.max(node.ledger.aside());
    }
    assert_eq!(aside, 9);
    // Nor when it is their turn again.
    for block in 4..=6 {
        node.moved_ms.fetch_add(61_000, Ordering::SeqCst);
        node.keep(&format!("caller-{block}"), 10).await;
        assert_eq!(node.store().await.unwrap(), 1);
    }
    assert_eq!(number(&home, USES).await, 60);

    refuse_no_more(&home).await;
    for _ in 0..3 {
        node.moved_ms.fetch_add(61_000, Ordering::SeqCst);
        node.store().await.unwrap();
    }
    assert!(!node.ledger.is_waiting());
    assert_eq!((node.ledger.aside(), node.ledger.lost()), (0, 0));
    assert_eq!(number(&home, USES).await, 150);
    assert_eq!(number(&home, EVENTS).await, 150);
}

async fn what_waits_behind_many_blocks_that_are_not_taken_is_reached(home: Home) {
    let node = Node::new(&home, &home.dir().join("journal.db"), "a").await;
    refuse(&home, "= 'poison'").await;
    let callers = ["poison"; 9].into_iter().chain(["good"; 20]);
    for caller in callers.chain(["poison"; 9]) {
        node.keep(caller, 10).await;
    }
    // Nothing else comes meanwhile.
    for _ in 0..9 {
        node.store().await.unwrap_or_default();
    }
    assert_eq!(number(&home, USES).await, 200);
    assert!(node.ledger.is_waiting());
}

async fn what_was_passed_by_is_sent_in_turn_with_what_is_new(home: Home) {
    let node = Node::new(&home, &home.dir().join("journal.db"), "a").await;
    refuse(&home, "= 'poison'").await;
    for _ in 0..100 {
        node.keep("poison", 1).await;
    }
    assert!(node.store().await.is_err(), "none is taken");
    node.keep("good", 1).await;
    assert_eq!(node.store().await.unwrap(), 1);
    refuse_no_more(&home).await;
    node.moved_ms.fetch_add(61_000, Ordering::SeqCst);
    let mut stored = Vec::new();
    for _ in 0..3 {
        node.keep("good", 1).await;
        stored.push(node.store().await.unwrap());
    }
    // Four groups of sixteen and the new one; the four that were tried before are the last.
    assert_eq!(stored, [65, 33, 5]);
    assert!(!node.ledger.is_waiting());
    let all = 101 + 3;
    assert_eq!(number(&home, USES).await, all);
    assert_eq!(number(&home, EVENTS).await, all);
}

/// As one that is too large for the patience of the database.
async fn blocks_that_take_the_ledger_too_long_hold_up_no_others(home: Home) {
    let node = Node::new(&home, &home.dir().join("journal.db"), "a").await;
    let slow = "canceling statement due to statement timeout";
    refuse_saying(&home, &[("slow", slow)]).await;
    for caller in [
        "slow", "slow", "good", "slow", "slow", "slow", "slow", "slow", "good",
    ] {
        node.keep(caller, 10).await;
    }
    for round in 0..20 {
        node.keep(&format!("caller-{round}"), 10).await;
        node.store().await.unwrap_or_default();
        node.moved_ms.fetch_add(10_000, Ordering::SeqCst);
    }
    node.store().await.unwrap_or_default();
    assert_eq!(number(&home, USES).await, 220);
    say_no_more(&home).await;
    for _ in 0..3 {
        node.moved_ms.fetch_add(61_000, Ordering::SeqCst);
        node.store().await.unwrap();
    }
    assert!(!node.ledger.is_waiting());
    assert_eq!(number(&home, USES).await, 290);
}

async fn a_block_that_was_not_taken_is_told_of_whatever_ended_the_round(home: Home) {
    let node = Node::new(&home, &home.dir().join("journal.db"), "a").await;
    let away = "the database system is shutting down";
    refuse_saying(&home, &[("poison", "refused"), ("away", away)]).await;
    for caller in ["first", "poison", "away", "last"] {
        node.keep(caller, 10).await;
    }
    let ended = node.store().await;
    assert!(matches!(ended, Err(db::Error::Unavailable(_))), "{ended:?}");
    assert_eq!(number(&home, USES).await, 10);
    assert_eq!(node.ledger.aside(), 1);
}

/// From now on the ledger says this of events that these callers asked for.
async fn refuse_saying(home: &Home, answers: &[(&str, &str)]) {
    for (caller, answer) in answers {
        let sqlite = format!(
            "CREATE TRIGGER say_{caller} BEFORE INSERT ON usage_event WHEN NEW.caller = '{caller}' \
             BEGIN SELECT RAISE(ABORT, '{answer}'); END"
        );
        let postgres = format!(
            "CREATE FUNCTION say_{caller}() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION '{answer}'; END $$"
        );
        change(&home.usage_db(), sqlite, postgres).await;
        if home.usage_db().is_sqlite() {
            continue;
        }
        let trigger = format!(
            "CREATE TRIGGER say_{caller} BEFORE INSERT ON usage_event FOR EACH ROW \
             WHEN (NEW.caller = '{caller}') EXECUTE FUNCTION say_{caller}()"
        );
        change(&home.usage_db(), String::new(), trigger).await;
    }
}

async fn say_no_more(home: &Home) {
    let sqlite = "DROP TRIGGER say_slow".to_owned();
    let postgres = "DROP TRIGGER say_slow ON usage_event".to_owned();
    change(&home.usage_db(), sqlite, postgres).await;
}

async fn a_ledger_that_takes_nothing_any_more_sets_little_aside(home: Home) {
    let node = Node::new(&home, &home.dir().join("journal.db"), "a").await;
    refuse(&home, "<> 'first'").await;
    for caller in ["first"].into_iter().chain(["other"; 40]) {
        node.keep(caller, 10).await;
    }
    node.store().await.unwrap_or_default();
    assert_eq!(number(&home, USES).await, 10);
    for _ in 0..5 {
        node.store().await.unwrap_or_default();
    }
    assert!(node.ledger.aside() <= 8, "{}", node.ledger.aside());
    refuse_no_more(&home).await;
    for _ in 0..2 {
        node.store().await.unwrap();
    }
    assert!(!node.ledger.is_waiting());
    assert_eq!(number(&home, USES).await, 410);
}

async fn a_ledger_that_takes_nothing_sets_nothing_aside(home: Home) {
    let node = Node::new(&home, &home.dir().join("journal.db"), "a").await;
    refuse(&home, "<> ''").await;
    for block in 0..6 {
        node.keep(&format!("caller-{block}"), 10).await;
    }
    for _ in 0..3 {
        assert!(node.store().await.is_err());
    }
    assert_eq!(number(&home, USES).await, 0);
    refuse_no_more(&home).await;
    assert_eq!(node.store().await.unwrap(), 6);
    assert_eq!(number(&home, EVENTS).await, 60);
    assert_eq!(number(&home, USES).await, 60);
    // Alone it is told of.
    refuse(&home, "= 'poison'").await;
    node.keep("poison", 10).await;
    assert!(node.store().await.is_err());
}

/// So a block whose storing panics is one that the ledger does not take, and holds up no other.
async fn work_that_panics_is_a_defect_and_no_sign_of_a_ledger_that_is_away(home: Home) {
    let db = home.usage_db();
    for _ in 0..3 {
        let panicking = async |_: &mut Conn| -> db::Result<()> { panic!("on purpose") };
        let told = db.write_to_end(panicking).await;
        assert!(matches!(told, Err(db::Error::Query(_))), "{told:?}");
    }
    // What it had begun is undone, and nothing waits for it.
    let node = Node::new(&home, &home.dir().join("journal.db"), "a").await;
    node.keep("caller", 10).await;
    assert_eq!(node.store().await.unwrap(), 1);
    assert_eq!(number(&home, USES).await, 10);
}

async fn a_block_that_cannot_be_read_is_given_up_and_the_others_are_stored(home: Home) {
    let journal = home.dir().join("journal.db");
    let node = Node::new(&home, &journal, "a").await;
    for caller in ["first", "second", "third"] {
        node.keep(caller, 10).await;
    }
    let torn =
        "UPDATE usage_journal SET block = SUBSTR(block, 1, LENGTH(block) - 1) WHERE number = 2";
    let file = Db::open_journal(journal).unwrap();
    change(&file, torn.to_owned(), String::new()).await;
    assert_eq!(node.store().await.unwrap(), 2);
    assert_eq!(node.ledger.lost(), 1);
    assert_eq!(number(&home, EVENTS).await, 20);
    assert_eq!(node.store().await.unwrap(), 0);
    assert_eq!(node.ledger.lost(), 1);
}

async fn a_block_of_a_later_version_waits_for_it(home: Home) {
    let journal = home.dir().join("j.db");
    let node = Node::new(&home, &journal, "n").await;
    for _ in 0..3 {
        node.keep("key_a", 5).await;
    }
    let file = Db::open_journal(journal).unwrap();
    let form = async |step: &str| {
        let sql = format!("UPDATE usage_journal SET form = form {step} WHERE number = 2");
        change(&file, sql, String::new()).await;
    };
    form("+ 1").await;
    assert_eq!(node.store().await.unwrap(), 2);
    assert_eq!((number(&home, USES).await, node.ledger.lost()), (10, 0));
    assert!(node.ledger.is_waiting());
    assert_eq!(node.store().await.unwrap(), 0);
    form("- 1").await;
    assert_eq!(node.store().await.unwrap(), 1);
    assert_eq!((number(&home, USES).await, node.ledger.lost()), (15, 0));
}

async fn the_log_of_the_journal_stays_small(home: Home) {
    let journal = home.dir().join("journal.db");
    let node = Node::new(&home, &journal, "a").await;
    let mut rules = Rules::default();
    rules.set("ten_1", "billing", Events::None);
    let more = "a".repeat(1024 * 1024);
    for _ in 0..40 {
        node.keep_with("caller", 1, &more).await;
        assert_eq!(node.ledger.store(rules.clone()).await.unwrap(), 1);
    }
    assert_eq!(number(&home, USES).await, 40);
    let log = std::fs::metadata(home.dir().join("journal.db-wal")).unwrap();
    assert!(log.len() < 16 * 1024 * 1024, "{}", log.len());
}

async fn no_commit_into_the_journal_waits_for_the_disk(home: Home) {
    #[derive(diesel::QueryableByName)]
    struct Setting {
        #[diesel(sql_type = diesel::sql_types::Integer)]
        synchronous: i32,
    }
    // The connection that writes.
    let of = async |db: &Db| -> i32 {
        let query = "SELECT synchronous FROM pragma_synchronous";
        let read = async move |conn: &mut Conn| -> db::Result<Setting> {
            Ok(each!(conn, c => diesel::sql_query(query).get_result(c).await)?)
        };
        db.write(read).await.expect("a setting").synchronous
    };
    let journal = Db::open_journal(home.dir().join("journal.db")).unwrap();
    assert_eq!(of(&journal).await, 1, "the journal's is not NORMAL");
    if home.usage_db().is_sqlite() {
        assert_eq!(of(&home.usage_db()).await, 2, "the ledger's is not FULL");
        assert_eq!(of(&home.db()).await, 2, "the database's is not FULL");
    }
}

async fn a_journal_without_room_keeps_counts_and_then_nothing_and_says_so(home: Home) {
    let node = Node::new(&home, &home.dir().join("journal.db"), "a").await;
    let room = Room {
        events: 1,
        counts: 4096,
    };
    let node = Node {
        ledger: node.ledger.within(room),
        ..node
    };
    let waiting = || node.ledger.waiting_bytes();
    node.keep("first", 10).await;
    let with_events = waiting();
    node.keep("second", 10).await;
    let with_counts = waiting();
    assert!(with_counts > with_events);
    // Those of a second are written down together, and at the end.
    node.keep("second", 10).await;
    node.moved_ms.fetch_add(800, Ordering::Relaxed);
    node.keep("second", 10).await;
    let written = waiting() - with_counts;
    assert!(written < with_events, "one line: {written}");
    node.keep("third", 10).await;
    let before = waiting();
    node.ledger.finish().await.unwrap();
    assert!(waiting() > before);
    assert_eq!((node.ledger.shed(), node.ledger.uses_lost()), (40, 0));

    let mut kept = 50;
    while waiting() <= room.counts {
        kept += 10;
        node.keep(&format!("caller-{kept}"), 10).await;
        node.ledger.finish().await.unwrap();
    }
    let full = waiting();
    node.keep("last", 10).await;
    node.ledger.finish().await.unwrap();
    assert_eq!((waiting(), node.ledger.uses_lost()), (full, 10));

    node.store().await.unwrap();
    assert_eq!(number(&home, USES).await, kept);
    assert_eq!(number(&home, EVENTS).await, 10);
    // With room again all is as ever.
    node.keep("again", 10).await;
    node.store().await.unwrap();
    assert_eq!(number(&home, EVENTS).await, 20);
    assert_eq!(node.ledger.uses_lost(), 10);
}

async fn a_journal_without_room_has_counts_within_a_second_and_puts_them_together(home: Home) {
    let journal = home.dir().join("journal.db");
    let node = Node::new(&home, &journal, "a").await;
    let node = Node {
        ledger: node.ledger.within(Room {
            events: 1,
            counts: 1024 * 1024,
        }),
        ..node
    };
    node.keep("first", 10).await;
    let mut waiting = node.ledger.waiting_bytes();
    for _ in 0..9 {
        node.keep("second", 10).await;
        let more = node.ledger.waiting_bytes();
        assert!(more > waiting, "it is in memory alone");
        waiting = more;
        node.moved_ms.fetch_add(800, Ordering::Relaxed);
    }
    // A kill now loses nothing.
    let copy = home.dir().join("copy.db");
    for end in ["", "-wal"] {
        let named = |path: &Path| format!("{}{end}", path.display());
        std::fs::copy(named(&journal), named(&copy)).unwrap();
    }
    let file = Db::open_journal(copy).unwrap();
    assert_eq!(blocks(&file).await, 10);
    // Nothing is sent before it is put together.
    assert_eq!(node.store().await.unwrap(), 1);
    assert_eq!(number(&home, USES).await, 10);
    assert!(node.ledger.waiting_bytes() > 1);

    node.moved_ms.fetch_add(10_000, Ordering::Relaxed);
    node.keep("second", 10).await;
    let file = Db::open_journal(journal).unwrap();
    assert_eq!(blocks(&file).await, 1);
    assert!(node.ledger.waiting_bytes() < waiting / 4, "{waiting}");
    assert_eq!(node.store().await.unwrap(), 1);
    assert_eq!(number(&home, USES).await, 110);
    assert_eq!(node.ledger.waiting_bytes(), 0);
    assert_eq!((node.ledger.shed(), node.ledger.uses_lost()), (100, 0));
}

async fn what_a_journal_does_not_take_is_told_now_and_then_and_kept_when_it_does(home: Home) {
    let journal = home.dir().join("journal.db");
    let node = Node::new(&home, &journal, "a").await;
    let file = Db::open_journal(journal).unwrap();
    let full = "CREATE TRIGGER full BEFORE INSERT ON usage_journal \
                BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END";
    change(&file, full.to_owned(), String::new()).await;
    let mut told = 0;
    for number in 0..100 {
        node.record(&format!("caller-{number}"), 10, "");
        told += i32::from(node.ledger.flush().await.is_err());
        node.moved_ms.fetch_add(200, Ordering::Relaxed);
    }
    assert!((1..=4).contains(&told), "{told}");
    // Who must know is told.
    assert!(node.ledger.finish().await.is_err());
    change(&file, "DROP TRIGGER full".to_owned(), String::new()).await;
    node.moved_ms.fetch_add(800, Ordering::Relaxed);
    node.ledger.flush().await.unwrap();
    assert_eq!(node.store().await.unwrap(), 1);
    assert_eq!(number(&home, EVENTS).await, 1_000);
    assert_eq!((node.ledger.shed(), node.ledger.uses_lost()), (0, 0));
}

async fn blocks(journal: &Db) -> i64 {
    let count = "SELECT CAST(COUNT(*) AS TEXT) AS line FROM usage_journal";
    let lines = lines_of(journal, count.to_owned()).await;
    lines[0].parse().expect("a number")
}
