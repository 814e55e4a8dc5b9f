//! The work of encoding one chunk, apart from the state machine so that any thread may do it.

/// One chunk to be encoded.
#[derive(Debug)]
pub struct EncodeJob {}

/// What a worker keeps between jobs.
#[derive(Debug, Default)]
pub struct EncodeScratch {}

/// An encoded chunk, on its way back to [`crate::Source::encoded`].
#[derive(Debug)]
pub struct Encoded {}

impl EncodeJob {
    /// Raw bytes to be encoded: what the job costs.
    pub fn raw_bytes(&self) -> usize {
        0
    }

    /// Encodes. Never fails: what cannot be made smaller is stored.
    pub fn run(self, _scratch: &mut EncodeScratch) -> Encoded {
        Encoded {}
    }
}
