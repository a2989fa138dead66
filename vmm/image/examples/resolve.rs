//! Resolves an image and says how long each phase took: `resolve CACHE_DIR IMAGE [STORE_DIR]`.
//! CACHE_DIR is made if it does not exist; STORE_DIR is the local store in which IMAGE is a name.
//! Both must be the caller's own ([`nelly_image::trusted`]).

use std::time::{Duration, Instant};

use nelly_image::{ImageStage, Progress, Reference, Store, StoreOptions};

/// Takes the time of each phase.
#[derive(Default)]
struct Clock {
    stages: Vec<(ImageStage, Duration, u64)>,
    current: Option<(ImageStage, Instant, u64)>,
}

impl Clock {
    fn end(&mut self) {
        if let Some((stage, start, done)) = self.current.take() {
            self.stages.push((stage, start.elapsed(), done));
        }
    }
}

impl Progress for Clock {
    fn update(&mut self, stage: ImageStage, done: u64, _total: Option<u64>) {
        match &mut self.current {
            Some((current, _, bytes)) if *current == stage => *bytes = done,
            _ => {
                self.end();
                self.current = Some((stage, Instant::now(), done));
            }
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(cache), Some(word)) = (args.next(), args.next()) else {
        return Err("usage: resolve CACHE_DIR IMAGE [STORE_DIR]".into());
    };
    let reference: Reference = word.parse()?;
    let mut options = StoreOptions::new(cache);
    options.local_dir = args.next().map(Into::into);
    let store = Store::open(options)?;
    let mut clock = Clock::default();
    let start = Instant::now();
    let image = store.resolve(&reference, &mut clock)?;
    let whole = start.elapsed();
    clock.end();
    for (stage, time, bytes) in &clock.stages {
        println!("{stage}: {time:.1?}, {bytes} bytes");
    }
    let rate = image.disk_bytes.checked_div(u64::try_from(whole.as_micros())?).unwrap_or(0);
    println!(
        "{} cached {} disk {} bytes in {whole:.1?} ({rate} MB/s)",
        image.digest, image.cached, image.disk_bytes
    );
    Ok(())
}
