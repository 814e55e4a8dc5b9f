use crate::error::*;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone)]
pub struct Payload(Arc<dyn AsRef<[u8]> + Send + Sync>);
impl Payload {
    pub fn new(b: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self(Arc::new(b))
    }
}
impl From<Vec<u8>> for Payload {
    fn from(v: Vec<u8>) -> Self {
        Self::new(v)
    }
}
impl From<Arc<[u8]>> for Payload {
    fn from(v: Arc<[u8]>) -> Self {
        Self::new(v)
    }
}

pub struct Chunk {
    pub seq: u64,
    pub after: u64,
    pub payload: Payload,
}

#[derive(Clone)]
pub struct TxSession;
#[derive(Clone)]
pub struct RxSession;

#[derive(Clone, Debug, Default)]
pub struct LinkStats {
    pub rtt: Option<Duration>,
    pub min_rtt: Option<Duration>,
    pub goodput_bytes_per_s: Option<u64>,
    pub lanes: u16,
}

impl TxSession {
    pub fn send(&self, _chunk: Chunk) -> Result<(), SendError> {
        unimplemented!()
    }
    pub fn message(&self, _message: Vec<u8>) -> Result<(), MessageError> {
        unimplemented!()
    }
    pub fn unsent_bytes(&self) -> u64 {
        unimplemented!()
    }
    pub fn in_flight_bytes(&self) -> u64 {
        unimplemented!()
    }
    pub fn credit_left(&self) -> u64 {
        unimplemented!()
    }
    pub fn stats(&self) -> LinkStats {
        unimplemented!()
    }
    pub fn close(&self, _code: u16, _text: &str) {
        unimplemented!()
    }
}
impl RxSession {
    pub fn applied(&self, _seq: u64, _payload_bytes: u64) {
        unimplemented!()
    }
    pub fn message(&self, _message: Vec<u8>) -> Result<(), MessageError> {
        unimplemented!()
    }
    pub fn stats(&self) -> LinkStats {
        unimplemented!()
    }
    pub fn close(&self, _code: u16, _text: &str) {
        unimplemented!()
    }
}
