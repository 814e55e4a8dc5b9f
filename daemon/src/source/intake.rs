//! QEMU's stream on its way into the engine: what the parser tells, in the engine's words.
//!
//! It holds no page and decides nothing; it remembers what the pump has to tell its controller.

use crate::pages::{Item, PageMap, PagesError};
use hikyaku_engine::{LayoutError, Source, Time};
use hikyaku_qemu::stream::{BlockIdx, Events, NotUnderstood, PAGE_BYTES, Parser, ParserConfig, RamLayout};

#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    #[error("the guest's memory cannot be numbered: {0}")]
    Pages(#[from] PagesError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// What the stream has told since the last look.
#[derive(Debug, Default)]
pub struct Told {
    /// RAM sections that carried nothing: QEMU found nothing dirty.
    pub empty_parts: u64,
    /// RAM's last record has been read; device state follows.
    pub ram_ended: bool,
    /// The stream was not understood and is relayed as it is from here on, for this reason.
    pub went_raw: Option<String>,
}

pub struct Intake {
    mode: Mode,
    map: Option<PageMap>,
    told: Told,
    item: Vec<u8>,
}

// One of a kind per migration: its size does not matter.
#[allow(clippy::large_enum_variant)]
enum Mode {
    Native(Parser),
    Raw,
}

impl Intake {
    pub fn native() -> Intake {
        Intake::new(Mode::Native(Parser::new(ParserConfig::default())))
    }

    /// Relays from the first byte.
    pub fn raw() -> Intake {
        Intake::new(Mode::Raw)
    }

    fn new(mode: Mode) -> Intake {
        Intake { mode, map: None, told: Told::default(), item: Vec::new() }
    }

    pub fn take_told(&mut self) -> Told {
        std::mem::take(&mut self.told)
    }

    /// Feeds `bytes` to the engine and returns how many were used; the rest is given again with more behind it.
    pub fn feed(&mut self, now: Time, bytes: &[u8], engine: &mut Source) -> Result<usize, IntakeError> {
        let Mode::Native(parser) = &mut self.mode else {
            self.item.clear();
            Item::Bytes(bytes).write(&mut self.item);
            engine.raw(&self.item);
            return Ok(bytes.len());
        };
        let mut feed =
            Feed { now, engine, map: &mut self.map, told: &mut self.told, item: &mut self.item, error: None };
        let result = parser.feed(bytes, &mut feed);
        if let Some(error) = feed.error {
            return Err(error);
        }
        match result {
            Ok(used) => Ok(used),
            Err(not_understood) => Ok(self.relay(not_understood, engine)),
        }
    }

    /// From the byte that was not understood on, everything goes through as it is.
    fn relay(&mut self, at: NotUnderstood, engine: &mut Source) -> usize {
        self.told.went_raw = Some(at.to_string());
        self.item.clear();
        Item::Relay(at.resume).write(&mut self.item);
        engine.raw(&self.item);
        self.mode = Mode::Raw;
        at.consumed_before
    }
}

struct Feed<'a> {
    now: Time,
    engine: &'a mut Source,
    map: &'a mut Option<PageMap>,
    told: &'a mut Told,
    item: &'a mut Vec<u8>,
    error: Option<IntakeError>,
}

impl Feed<'_> {
    fn item(&mut self, item: Item<'_>) {
        self.item.clear();
        item.write(self.item);
        self.engine.opaque(self.item);
    }
}

impl Events for Feed<'_> {
    fn opaque(&mut self, bytes: &[u8]) {
        self.item(Item::Bytes(bytes));
    }

    fn blocks(&mut self, layout: &RamLayout) {
        let made = PageMap::new(layout).map_err(IntakeError::from).and_then(|map| {
            self.engine.layout(self.now, map.pages())?;
            Ok(map)
        });
        match made {
            Ok(map) => *self.map = Some(map),
            Err(error) => self.error = Some(error),
        }
    }

    fn zero(&mut self, block: BlockIdx, offset: u64) {
        if let Some(map) = self.map {
            self.engine.zero(self.now, map.id(block, offset), 1);
        }
    }

    fn page(&mut self, block: BlockIdx, offset: u64, data: &[u8; PAGE_BYTES]) {
        if let Some(map) = self.map {
            self.engine.page(self.now, map.id(block, offset), data);
        }
    }

    fn select_block(&mut self, block: BlockIdx) {
        self.item(Item::SelectBlock(block));
    }

    fn ram_part(&mut self, pages: u64) {
        if pages == 0 {
            self.told.empty_parts += 1;
        }
    }

    fn ram_end(&mut self, _pages: u64) {
        self.told.ram_ended = true;
    }

    fn tail(&mut self, bytes: &[u8]) {
        self.engine.tail(bytes);
    }
}
