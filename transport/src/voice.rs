//! What is said on the control connection within one session, kept until the other side has heard it.
//!
//! Things said (messages, and the session's end as the last) are numbered from 1 by their order. A control connection
//! keeps the order; what got lost with it is said again on the next one, from the first that was not heard. So each
//! thing is heard exactly once.

use std::collections::VecDeque;

#[derive(Debug, Default)]
pub struct Voice {
    /// Encoded; the first of them has the number `heard_there + 1`.
    unheard: VecDeque<Vec<u8>>,
    unheard_bytes: usize,
    heard_there: u64,
    heard_here: u64,
    /// `heard_here` grew since it was last told.
    news: bool,
    /// What is said goes out at once; else it waits for [`Voice::resume`].
    pub live: bool,
    /// The last thing was said.
    pub ended_here: bool,
    /// The other side's last thing was heard.
    pub ended_there: bool,
}

/// The other side heard what was never said, or forgot what it had heard.
#[derive(Debug, PartialEq, Eq)]
pub struct Misheard;

impl Voice {
    pub fn live() -> Self {
        Self { live: true, ..Self::default() }
    }

    /// Keeps a thing until it is heard. Whoever calls sends it, too, if the voice is live.
    pub fn say(&mut self, encoded: Vec<u8>) {
        self.unheard_bytes += encoded.len();
        self.unheard.push_back(encoded);
    }

    pub fn unheard_bytes(&self) -> usize {
        self.unheard_bytes
    }

    /// One more thing came. True: telling so is due, and was not before.
    pub fn heard(&mut self) -> bool {
        self.heard_here += 1;
        !std::mem::replace(&mut self.news, true)
    }

    pub fn heard_here(&self) -> u64 {
        self.heard_here
    }

    /// What to tell of `heard_here`, if it is due.
    pub fn take_news(&mut self) -> Option<u64> {
        std::mem::take(&mut self.news).then_some(self.heard_here)
    }

    /// The other side has heard so many things.
    pub fn heard_there(&mut self, number: u64) -> Result<(), Misheard> {
        let more = number.checked_sub(self.heard_there).ok_or(Misheard)?;
        if more > self.unheard.len() as u64 {
            return Err(Misheard);
        }
        for encoded in self.unheard.drain(..more as usize) {
            self.unheard_bytes -= encoded.len();
        }
        self.heard_there = number;
        Ok(())
    }

    /// A new control connection: what the other side has not heard is to be said again, in this order.
    pub fn resume(&mut self, heard_there: u64) -> Result<impl Iterator<Item = &Vec<u8>>, Misheard> {
        self.heard_there(heard_there)?;
        self.live = true;
        Ok(self.unheard.iter())
    }

    /// Nothing more will be said or heard.
    pub fn is_over(&self) -> bool {
        self.ended_here && self.unheard.is_empty() || self.ended_there && !self.news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_heard_is_said_again_in_order() {
        let mut voice = Voice::live();
        (1..=4).for_each(|n| voice.say(vec![n]));
        voice.heard_there(1).unwrap();
        assert_eq!(voice.unheard_bytes(), 3);
        let again: Vec<_> = voice.resume(2).unwrap().cloned().collect();
        assert_eq!(again, [vec![3], vec![4]]);
        assert_eq!(voice.heard_there(1), Err(Misheard), "it forgot");
        assert_eq!(voice.heard_there(5), Err(Misheard), "it was never said");
    }

    #[test]
    fn hearing_is_told_once() {
        let mut voice = Voice::live();
        assert!(voice.heard());
        assert!(!voice.heard());
        assert_eq!(voice.take_news(), Some(2));
        assert_eq!(voice.take_news(), None);
    }

    #[test]
    fn it_is_over_when_the_end_was_heard() {
        let mut voice = Voice::live();
        voice.say(vec![1]);
        voice.ended_here = true;
        assert!(!voice.is_over());
        voice.heard_there(1).unwrap();
        assert!(voice.is_over());
        let mut voice = Voice::live();
        voice.heard();
        voice.ended_there = true;
        assert!(!voice.is_over(), "the other side waits to be told");
        voice.take_news();
        assert!(voice.is_over());
    }
}
