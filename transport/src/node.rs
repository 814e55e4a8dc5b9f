use crate::config::NodeConfig;
use crate::error::*;
use crate::events::*;
use crate::names::*;
use crate::session::*;
use std::net::SocketAddr;
use std::sync::Arc;

#[derive(Clone)]
pub struct Node;
impl Node {
    pub fn start(_config: NodeConfig, _acceptor: Arc<dyn Acceptor>) -> Result<Node, StartError> {
        unimplemented!()
    }
    pub fn addresses(&self) -> &[SocketAddr] {
        unimplemented!()
    }
    pub async fn link(&self, _peer: &PeerName) -> Result<Link, LinkError> {
        unimplemented!()
    }
}
#[derive(Clone)]
pub struct Link;
impl Link {
    pub async fn open(
        &self,
        _id: SessionId,
        _hello: Vec<u8>,
        _events: Arc<dyn TxEvents>,
    ) -> Result<(TxSession, Vec<u8>), OpenError> {
        unimplemented!()
    }
    pub fn stats(&self) -> LinkStats {
        unimplemented!()
    }
    pub fn peer(&self) -> &PeerName {
        unimplemented!()
    }
}
pub struct Incoming;
impl Incoming {
    pub fn id(&self) -> SessionId {
        unimplemented!()
    }
    pub fn accept(
        self,
        _reply: Vec<u8>,
        _credit_bytes: u64,
        _events: Arc<dyn RxEvents>,
    ) -> Result<RxSession, Lost> {
        unimplemented!()
    }
    pub fn refuse(self, _code: u16, _text: &str) {
        unimplemented!()
    }
}
