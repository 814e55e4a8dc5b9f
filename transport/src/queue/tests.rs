use super::*;
use crate::error::Lost;
use crate::session::charge;

struct Nobody;

impl TxEvents for Nobody {
    fn acked(&self, _: u64, _: &[(u64, u64)]) {}
    fn room(&self) {}
    fn message(&self, _: Vec<u8>) {}
    fn lost(&self, _: Lost) {}
    fn closed(&self, _: u16, _: String) {}
}

fn chunk(seq: u64, bytes: usize) -> Chunk {
    Chunk { seq, after: 0, payload: vec![0; bytes].into() }
}

fn queue(sessions: &[u32]) -> TxQueue {
    let queue = TxQueue::new(1000);
    for session in sessions {
        queue.add_session(*session, Arc::new(Nobody));
    }
    queue
}

fn take(queue: &TxQueue) -> Option<(u32, u64)> {
    queue.take(Carrier(0), Instant::now()).map(|taken| (taken.session, taken.chunk.seq))
}

#[test]
fn a_session_without_credit_does_not_stop_the_others() {
    let queue = queue(&[1, 2]);
    queue.grant(2, 10_000);
    for seq in 1..3 {
        queue.push(1, chunk(seq, 100)).unwrap();
        queue.push(2, chunk(seq, 100)).unwrap();
    }
    assert_eq!(take(&queue), Some((2, 1)));
    assert_eq!(take(&queue), Some((2, 2)));
    assert_eq!(take(&queue), None);
    assert!(queue.ready_at(Instant::now()).is_none());
    queue.grant(1, charge(100));
    assert!(queue.ready_at(Instant::now()).is_some());
    assert_eq!(take(&queue), Some((1, 1)));
    assert_eq!(take(&queue), None);
}

#[test]
fn sessions_take_turns() {
    let queue = queue(&[1, 2]);
    queue.grant(1, 1 << 20);
    queue.grant(2, 1 << 20);
    for seq in 1..4 {
        queue.push(1, chunk(seq, 10)).unwrap();
    }
    queue.push(2, chunk(1, 10)).unwrap();
    let order: Vec<_> = std::iter::from_fn(|| take(&queue)).collect();
    assert_eq!(order, [(1, 1), (2, 1), (1, 2), (1, 3)]);
}

#[test]
fn acknowledged_chunks_leave_the_account_once() {
    let queue = queue(&[1]);
    queue.grant(1, 1 << 20);
    for seq in 1..=5 {
        queue.push(1, chunk(seq, 100)).unwrap();
        take(&queue).unwrap();
    }
    let now = Instant::now();
    assert_eq!(queue.figures(1).unwrap().in_flight_bytes, 500);
    queue.acked(now, 1, 1, &[(3, 4)], 0, None).unwrap().unwrap();
    queue.acked(now, 1, 1, &[(3, 4)], 0, None).unwrap().unwrap();
    assert_eq!(queue.figures(1).unwrap().in_flight_bytes, 200);
    queue.acked(now, 1, 5, &[], 0, None).unwrap().unwrap();
    let figures = queue.figures(1).unwrap();
    assert_eq!((figures.in_flight_bytes, figures.delivered_bytes), (0, 500));
}

#[test]
fn what_a_dead_connection_carried_goes_first_and_costs_no_credit() {
    let queue = queue(&[1]);
    queue.grant(1, 3 * charge(100));
    for seq in 1..=4 {
        queue.push(1, chunk(seq, 100)).unwrap();
    }
    let (dying, living) = (queue.new_carrier(), queue.new_carrier());
    let now = Instant::now();
    let take = |carrier| queue.take(carrier, now).map(|taken| taken.chunk.seq);
    assert_eq!((take(dying), take(living), take(dying)), (Some(1), Some(2), Some(3)));
    assert_eq!(take(living), None, "no credit for the fourth");
    queue.give_back(dying);
    assert_eq!((take(living), take(living), take(living)), (Some(1), Some(3), None));
    let figures = queue.figures(1).unwrap();
    assert_eq!((figures.in_flight_bytes, figures.unsent_bytes, figures.credit_left), (300, 100, 0));
}

#[test]
fn what_is_acknowledged_after_all_is_not_sent_again() {
    let queue = queue(&[1]);
    queue.grant(1, 1 << 20);
    let carrier = queue.new_carrier();
    let now = Instant::now();
    for seq in 1..=3 {
        queue.push(1, chunk(seq, 100)).unwrap();
        queue.take(carrier, now).unwrap();
    }
    queue.give_back(carrier);
    queue.acked(now, 1, 2, &[], 0, None).unwrap().unwrap();
    assert_eq!(queue.take(carrier, now).unwrap().chunk.seq, 3);
    assert!(queue.take(carrier, now).is_none());
    assert_eq!(queue.figures(1).unwrap().in_flight_bytes, 100);
}

#[test]
fn after_an_outage_only_what_the_peer_lacks_is_sent_again() {
    let queue = queue(&[1]);
    queue.grant(1, 1 << 20);
    let carrier = queue.new_carrier();
    let now = Instant::now();
    for seq in 1..=5 {
        queue.push(1, chunk(seq, 100)).unwrap();
        queue.take(carrier, now).unwrap();
    }
    let mut received = RangeSet::default();
    [1, 2, 4].into_iter().for_each(|seq| assert!(received.insert(seq)));
    // Once with the connection given back before, once not: the same.
    queue.give_back(carrier);
    for _ in 0..2 {
        queue.resume(1, &received);
        let again: Vec<_> =
            std::iter::from_fn(|| queue.take(carrier, now)).map(|taken| taken.chunk.seq).collect();
        assert_eq!(again, [3, 5]);
    }
    assert_eq!(queue.figures(1).unwrap().in_flight_bytes, 500, "arrived is not applied");
    queue.acked(now, 1, 5, &[], 0, None).unwrap().unwrap();
    assert_eq!(queue.figures(1).unwrap().in_flight_bytes, 0);
    assert!(queue.ready_at(Instant::now()).is_none());
}

#[test]
fn what_was_never_sent_cannot_be_acknowledged() {
    let queue = queue(&[1]);
    queue.grant(1, 1 << 20);
    queue.push(1, chunk(1, 100)).unwrap();
    let now = Instant::now();
    assert!(queue.acked(now, 1, 1, &[], 0, None).is_err(), "queued, not taken");
    take(&queue).unwrap();
    assert!(queue.acked(now, 1, 1, &[], 0, None).is_ok());
    assert!(queue.acked(now, 1, 1, &[(7, 7)], 0, None).is_err());
}

#[test]
fn a_session_that_waits_for_its_limit_is_passed_over() {
    let queue = queue(&[1, 2]);
    let now = Instant::now();
    queue.set_limit(1, Some(1_000_000), now);
    for session in [1, 2] {
        queue.grant(session, 1 << 30);
        (1..=3).for_each(|seq| queue.push(session, chunk(seq, 100_000)).unwrap());
    }
    let take = |now| queue.take(Carrier(0), now).map(|taken| (taken.session, taken.chunk.seq));
    let first: Vec<_> = std::iter::from_fn(|| take(now)).take(5).collect();
    assert_eq!(first, [(1, 1), (2, 1), (2, 2), (2, 3)], "one is taken ahead");
    let ready = queue.ready_at(now).unwrap();
    let wait_s = (ready - now).as_secs_f64();
    assert!((0.10..0.11).contains(&wait_s), "until the first is paid: {wait_s}");
    assert_eq!((take(ready - Duration::from_millis(1)), take(ready)), (None, Some((1, 2))));
    queue.set_limit(1, None, ready);
    assert_eq!(queue.ready_at(ready), Some(ready));
}

#[test]
fn under_a_low_limit_one_lane_at_a_time_has_a_frame_and_urgent_ones_get_another() {
    let queue = queue(&[1, 2]);
    let now = Instant::now();
    queue.set_link_limit(Some(1_000_000), now);
    for session in [1, 2] {
        queue.grant(session, 1 << 30);
        (1..=3).for_each(|seq| queue.push(session, chunk(seq, 100_000)).unwrap());
    }
    let lanes = [queue.new_carrier(), queue.new_carrier()];
    let taken = queue.take(lanes[0], now).unwrap();
    assert_eq!((taken.slice.due, taken.slice.pace), (now, Some(1_125_000)));
    // What a full socket held leaves at its pace beside the slices of other lanes: 4 ms of the limit at most, or four packets.
    assert_eq!(taken.slice.unsent_most, Some(4 * 1448));
    let left = 100_000 - taken.slice.bytes;
    let next = queue.slice(lanes[0], taken.session, left, now + Duration::from_millis(1));
    assert!(next.bytes < 5_000 && next.due > now + Duration::from_millis(1));
    assert!(queue.take(lanes[1], next.due).is_none());
    queue.set_priority(2, Priority::Urgent);
    assert_eq!(queue.take(lanes[1], next.due).unwrap().session, 2);
    queue.set_link_limit(None, now);
    assert_eq!(queue.slice(lanes[0], taken.session, 1000, now).unsent_most, None);
}

#[test]
fn an_ebb_holds_until_its_last_holder_goes_and_not_for_urgent_frames() {
    let queue = queue(&[1, 2]);
    let now = Instant::now();
    for session in [1, 2] {
        queue.grant(session, 1 << 30);
        (1..=4).for_each(|seq| queue.push(session, chunk(seq, 100_000)).unwrap());
    }
    let holders = [Holder::new(), Holder::new()];
    queue.set_ebb(holders[0], Some(1_000_000), now);
    queue.set_ebb(holders[1], Some(2_000_000), now);
    let lanes = [queue.new_carrier(), queue.new_carrier(), queue.new_carrier()];
    let slow = queue.take(lanes[0], now).unwrap();
    assert!(slow.slice.bytes < 5_000 && slow.slice.pace == Some(1_125_000));
    assert!(queue.take(lanes[1], now + Duration::from_micros(10)).is_none());
    // The other guest stands.
    queue.set_priority(2, Priority::Urgent);
    for lane in &lanes[1..] {
        let urgent = queue.take(*lane, now).unwrap();
        assert_eq!((urgent.session, urgent.slice.due, urgent.slice.pace), (2, now, None));
        assert!(urgent.slice.bytes > 100_000, "the whole frame");
    }
    queue.set_priority(2, Priority::Normal);
    let pace = |queue: &TxQueue| queue.slice(lanes[0], 1, 50_000, now).pace;
    queue.set_ebb(holders[0], None, now);
    assert_eq!(pace(&queue), Some(2_250_000));
    queue.set_ebb(holders[0], None, now);
    assert_eq!(pace(&queue), Some(2_250_000));
    queue.set_ebb(holders[1], None, now);
    assert_eq!(pace(&queue), None);
}

#[test]
fn a_session_whose_peer_is_slow_holds_up_nobody_else() {
    let queue = queue(&[1, 2]);
    for session in [1, 2] {
        queue.grant(session, 1 << 30);
        (1..=100).for_each(|seq| queue.push(session, chunk(seq, 1 << 20)).unwrap());
    }
    let taken = || {
        let taken: Vec<_> = std::iter::from_fn(|| take(&queue)).map(|(session, _)| session).collect();
        [1, 2].map(|session| taken.iter().filter(|taken| **taken == session).count() as u64)
    };
    let most = under_way::LEAST >> 20;
    assert_eq!(taken(), [most; 2]);
    // One's destination applies nothing.
    queue.acked(Instant::now(), 2, 10, &[], 0, None).unwrap().unwrap();
    assert_eq!(taken(), [0, 10]);
}

#[test]
fn who_waits_for_its_peer_is_told_from_who_waits_for_the_path_and_the_urgent_wait_for_neither() {
    let queue = queue(&[1]);
    queue.grant(1, 1 << 30);
    (1..=100).for_each(|seq| queue.push(1, chunk(seq, 1 << 20)).unwrap());
    let lane =
        |in_flight_bytes| crate::lane_stats::LaneStats { in_flight_bytes, ..crate::lane_stats::some_lane(0) };
    let waits = |in_flight_bytes| queue.pressure().waits_for_peer(&[lane(in_flight_bytes)]);
    assert!(!waits(0), "for a lane");
    std::iter::from_fn(|| take(&queue)).for_each(drop);
    assert_eq!([0, under_way::LEAST].map(waits), [true, false]);
    queue.set_priority(1, Priority::Urgent);
    assert!(take(&queue).is_some());
}

#[test]
fn nothing_new_is_taken_while_as_much_is_under_way_as_may_be() {
    let queue = queue(&[1, 2]);
    for session in [1, 2] {
        queue.grant(session, 1 << 20);
        (1..=3).for_each(|seq| queue.push(session, chunk(seq, 100)).unwrap());
    }
    let now = Instant::now();
    let carrier = queue.new_carrier();
    let take = || queue.take(carrier, now).map(|taken| (taken.session, taken.chunk.seq));
    let most = |bytes| queue.bound_under_way(now, |_| vec![(1, bytes), (2, bytes)]);
    most(100);
    assert_eq!([take(), take(), take()], [Some((1, 1)), Some((2, 1)), None]);
    assert!(queue.ready_at(now).is_none());
    queue.give_back(carrier);
    assert_eq!([take(), take(), take()], [Some((1, 1)), Some((2, 1)), None], "no more than before");
    queue.acked(now, 2, 1, &[], 0, None).unwrap().unwrap();
    assert!(take().is_some());
    assert_eq!(take(), None);
    most(u64::MAX);
    assert_eq!(std::iter::from_fn(take).count(), 3);
}

#[test]
fn numbers_only_rise() {
    let queue = queue(&[1]);
    queue.push(1, chunk(5, 1)).unwrap();
    assert_eq!(queue.push(1, chunk(5, 1)), Err(SendError::Order(5)));
    assert_eq!(queue.push(2, chunk(1, 1)), Err(SendError::Closed));
}
