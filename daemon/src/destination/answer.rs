//! The answer to a source in doubt: what the records say, and nothing that they do not.

use crate::fail;
use crate::id::Id;
use crate::ownership::{Known, known};
use crate::protocol::{Answer, Ask, Verdict};
use crate::records::{Phase, Record, RecordError, Records};

/// Answers from the records. A migration of this incarnation that never came to Starting, and is not under way, is refused
/// for good, durably, before that is said: a later GO finds it refused. `under_way`: it is being received now.
pub async fn answer(
    records: &Records,
    under_way: bool,
    peer: &str,
    ask: &Ask,
) -> Result<Answer, RecordError> {
    if ask.incarnation != records.incarnation() {
        return Ok(Answer::Unknown);
    }
    let record = records.read(ask.migration).await?;
    // A record of another peer's migration says nothing about this one.
    if record.as_ref().is_some_and(|record| record.peer != peer) {
        return Ok(Answer::Unknown);
    }
    Ok(match known(record.as_ref().map(|record| (record.phase, record.run)), under_way) {
        Known::Running => Answer::Verdict(Verdict::Running),
        Known::Paused => Answer::Verdict(Verdict::Paused),
        Known::Refused => {
            Answer::Verdict(Verdict::Refused { why: record.map(|record| record.why).unwrap_or_default() })
        }
        Known::Pending => Answer::Pending,
        Known::Nothing => Answer::Unknown,
        Known::NeverCame => {
            fail::point("destination.asked");
            let why = "the guest was let go, but that never came here".to_owned();
            records.write(&Record { why: why.clone(), ..Record::refused(ask.migration, peer) }).await?;
            Answer::Verdict(Verdict::Refused { why })
        }
    })
}

/// The source of this migration will not ask: nothing has to be known of it any more.
pub async fn over(records: &Records, peer: &str, migration: Id) {
    let forgotten = match records.read(migration).await {
        // What has not come to its end here is still wanted by us.
        Ok(Some(record))
            if record.peer == peer && matches!(record.phase, Phase::Arrived | Phase::Refused) =>
        {
            records.forget(migration).await
        }
        other => other.map(drop),
    };
    if let Err(error) = forgotten {
        tracing::warn!(%error, %migration, "a record that nobody needs is kept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::PROTOCOL;

    struct Bench {
        records: Records,
        _directory: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Bench {
            let directory = tempfile::tempdir().unwrap();
            Bench { records: Records::open(directory.path()).unwrap(), _directory: directory }
        }

        async fn ask(&self, migration: Id, under_way: bool) -> Answer {
            let ask = Ask { protocol: PROTOCOL, migration, incarnation: self.records.incarnation() };
            answer(&self.records, under_way, "tokyo", &ask).await.unwrap()
        }

        async fn record(&self, phase: Phase, run: bool) -> Id {
            let id = Id::random();
            self.records.write(&Record { phase, run, ..Record::refused(id, "tokyo") }).await.unwrap();
            id
        }
    }

    #[tokio::test]
    async fn what_never_came_is_refused_durably_before_that_is_said() {
        let bench = Bench::new();
        let id = Id::random();
        assert_eq!(bench.ask(id, true).await, Answer::Pending);
        assert_eq!(bench.records.read(id).await.unwrap(), None);
        assert!(matches!(bench.ask(id, false).await, Answer::Verdict(Verdict::Refused { .. })));
        assert_eq!(bench.records.read(id).await.unwrap().unwrap().phase, Phase::Refused);
    }

    #[tokio::test]
    async fn lost_records_never_release_and_never_refuse() {
        let bench = Bench::new();
        let ask = Ask { protocol: PROTOCOL, migration: Id::random(), incarnation: Id::random() };
        assert_eq!(answer(&bench.records, false, "tokyo", &ask).await.unwrap(), Answer::Unknown);
        assert_eq!(bench.records.read(ask.migration).await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_records_say_what_became_of_it() {
        let bench = Bench::new();
        let arrived = bench.record(Phase::Arrived, true).await;
        assert_eq!(bench.ask(arrived, false).await, Answer::Verdict(Verdict::Running));
        let paused = bench.record(Phase::Arrived, false).await;
        assert_eq!(bench.ask(paused, false).await, Answer::Verdict(Verdict::Paused));
        let starting = bench.record(Phase::Starting, true).await;
        assert_eq!(bench.ask(starting, false).await, Answer::Pending);
    }

    #[tokio::test]
    async fn what_the_source_will_not_ask_for_is_forgotten_once_it_has_ended_here() {
        let bench = Bench::new();
        let (arrived, starting) =
            (bench.record(Phase::Arrived, true).await, bench.record(Phase::Starting, true).await);
        over(&bench.records, "kyoto", arrived).await;
        assert_eq!(bench.ask(arrived, false).await, Answer::Verdict(Verdict::Running), "it is another's");
        for id in [arrived, starting, Id::random()] {
            over(&bench.records, "tokyo", id).await;
        }
        assert_eq!(bench.records.read(arrived).await.unwrap(), None);
        assert!(bench.records.read(starting).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn another_peers_guest_is_none_of_its_business() {
        let bench = Bench::new();
        let id = bench.record(Phase::Arrived, true).await;
        let ask = Ask { protocol: PROTOCOL, migration: id, incarnation: bench.records.incarnation() };
        assert_eq!(answer(&bench.records, false, "kyoto", &ask).await.unwrap(), Answer::Unknown);
    }
}
