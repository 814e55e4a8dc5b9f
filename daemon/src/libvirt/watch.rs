//! A carriage's own session carries nothing: it lives as long as the carriage does, and is watched at both ends.

use crate::mailbox::Slot;
use hikyaku_transport::{Lost, RxEvents, TxEvents};

pub struct Watch(pub Slot);

/// What both ends are told alike.
macro_rules! to_the_carriage {
    () => {
        fn message(&self, message: Vec<u8>) {
            self.0.message(message);
        }

        fn link_down(&self, why: Lost) {
            self.0.link_down(why);
        }

        fn link_up(&self) {
            self.0.link_up();
        }

        fn lost(&self, lost: Lost) {
            self.0.lost(lost);
        }

        fn closed(&self, code: u16, text: String) {
            self.0.closed(code, text);
        }
    };
}

impl TxEvents for Watch {
    fn acked(&self, _cumulative: u64, _ranges: &[(u64, u64)]) {}
    fn room(&self) {}
    to_the_carriage!();
}

impl RxEvents for Watch {
    fn chunk(&self, _seq: u64, _after: u64, _payload: Vec<u8>) {}
    to_the_carriage!();
}
