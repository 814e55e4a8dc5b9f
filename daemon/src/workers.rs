//! Threads for the CPU work of all migrations: encoding chunks. As many as the machine has cores.
//!
//! How much work waits is bounded by those who hand it in (each engine allows itself a few jobs), not here.

use hikyaku_engine::EncodeScratch;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

type Job = Box<dyn FnOnce(&mut EncodeScratch) + Send>;

/// Cheap to clone. The threads end with the last one.
#[derive(Debug, Clone)]
pub struct Workers {
    jobs: Sender<Job>,
    count: usize,
}

impl Workers {
    pub fn start() -> io::Result<Workers> {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        for i in 0..count {
            let queue = queue.clone();
            std::thread::Builder::new().name(format!("encode-{i}")).spawn(move || work(&queue))?;
        }
        Ok(Workers { jobs, count })
    }

    pub fn count(&self) -> usize {
        self.count
    }

    pub fn run(&self, job: impl FnOnce(&mut EncodeScratch) + Send + 'static) {
        // The threads live as long as this sender: a job is never refused.
        let _ = self.jobs.send(Box::new(job));
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    let mut scratch = EncodeScratch::default();
    loop {
        // The lock is held while waiting: one thread waits for the queue, the others for the lock. It is
        // released before the job runs.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job(&mut scratch),
            Err(_) => return,
        }
    }
}
