//! Who works with a volume: one process at a time, known by `flock`, which the kernel drops when
//! the process dies.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock, ftruncate};
use rustix::io::Errno;

use crate::error::{Error, IoContext, Result};
use crate::observe::Stop;

const PAUSE: Duration = Duration::from_millis(100);
/// Bytes read of another's lock, at most.
const HOLDER_LEN_MAX: u64 = 100;

/// A volume's lock, given back when dropped.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] File);

impl Lock {
    /// Takes the lock of the volume with this uuid, in `folder`; waits for it for at most `wait`.
    pub fn take(folder: &Path, uuid: &str, volume: &str, wait: Duration, stop: &Stop) -> Result<Self> {
        fs::create_dir_all(folder).at("make", folder)?;
        let path = folder.join(format!("{uuid}.lock"));
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .at("open", &path)?;
        let began = Instant::now();
        loop {
            stop.check()?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if began.elapsed() < wait => sleep(PAUSE),
                Err(Errno::WOULDBLOCK) => {
                    let mut holder = String::new();
                    let _ = (&mut file).take(HOLDER_LEN_MAX).read_to_string(&mut holder);
                    let holder = format!("process {}", holder.trim());
                    return Err(Error::VolumeLocked { volume: volume.into(), holder });
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e).at("lock", &path),
            }
        }
        // Only for messages.
        let _ = ftruncate(&file, 0);
        let _ = writeln!(file, "{}", std::process::id());
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_the_holder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let take = |uuid: &str| Lock::take(dir.path(), uuid, "vg/lv", Duration::ZERO, &Stop::new());
        let first = take("a").unwrap();
        take("b").unwrap();
        match take("a") {
            Err(Error::VolumeLocked { volume, holder }) => {
                assert_eq!((volume.as_str(), holder), ("vg/lv", format!("process {}", std::process::id())));
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        take("a").unwrap();
    }

    #[test]
    fn waiting_ends_when_it_is_to_stop() {
        let dir = tempfile::tempdir().unwrap();
        let stop = Stop::new();
        let _first = Lock::take(dir.path(), "a", "vg/lv", Duration::ZERO, &stop).unwrap();
        stop.request(15);
        assert!(matches!(
            Lock::take(dir.path(), "a", "vg/lv", Duration::MAX, &stop),
            Err(Error::Stopped(15))
        ));
    }
}
