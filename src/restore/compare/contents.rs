//! Contents of live files against those of a snapshot: by the ids of chunks, or byte by byte.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::fs::CWD;

use crate::error::{Error, IoContext, Result};
use crate::format::map::{Extent, Map};
use crate::history::ranges::Ranges;
use crate::repo::nodes::Extents;
use crate::restore::content::write_content;
use crate::restore::verify::{differing, differing_zeros};
use crate::restore::window::Window;
use crate::restore::{Context, Restored};
use crate::source::extents::{device_len, read_at};
use crate::source::open::open_file;
use crate::target::{Content, Counts, Empty};

/// Where something is in the source.
#[derive(Clone)]
pub struct Place {
    /// The directory that it is in; `None` for the source itself.
    pub dir: Option<Arc<OwnedFd>>,
    /// The whole path.
    pub path: PathBuf,
    /// Whether it may be a symlink to what is meant.
    pub follow: bool,
}

impl Place {
    /// What it is called from there.
    pub fn name(&self) -> &Path {
        match &self.dir {
            Some(_) => self.path.file_name().map_or(&self.path, Path::new),
            None => &self.path,
        }
    }

    /// Opens it.
    pub fn open(&self) -> Result<File> {
        let opened = match &self.dir {
            Some(dir) => open_file(dir, self.name(), false),
            None => open_file(CWD, self.name(), self.follow),
        };
        opened.at("open", &self.path)
    }
}

/// A content to be compared.
pub struct Check {
    /// Its number among those that wait.
    pub number: usize,
    /// Where it is.
    pub place: Place,
    /// What it is compared with.
    pub map: Map,
}

/// What differs in each, by the ids of chunks.
pub fn hashed(context: &Context, checks: &[Check]) -> Result<Vec<Result<Ranges>>> {
    let one = |check: &Check| {
        let mut ranges = Ranges::default();
        let file = check.place.open()?;
        differing(context, &check.map, &file, &check.place.path, &mut |offset, len| {
            ranges.push(offset, len);
            Ok(())
        })?;
        Ok(ranges)
    };
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<Ranges>>>> = checks.iter().map(|_| Mutex::new(None)).collect();
    let workers = thread::available_parallelism().map_or(1, usize::from).min(checks.len());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((check, result)) = {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    checks.get(number).zip(results.get(number))
                } {
                    if let Ok(mut result) = result.lock() {
                        *result = Some(one(check));
                    }
                }
            });
        }
    });
    let ended = || Error::Internal("a thread that compares ended early");
    results.into_iter().map(|result| result.into_inner().ok().flatten().ok_or_else(ended)).collect()
}

/// What differs in each, byte by byte: as if they were restored, by something that only compares.
pub fn full(context: &Context, checks: &[Check], restored: &mut Restored) -> Result<Vec<Result<Ranges>>> {
    let mut window = Window::default();
    let mut comparers = Vec::with_capacity(checks.len());
    for Check { place, map, .. } in checks {
        let file = match place.open() {
            Ok(file) => file,
            Err(error) => {
                comparers.push(Err(error));
                continue;
            }
        };
        let comparer = Arc::new(Comparer { file, path: place.path.clone(), found: Mutex::default() });
        let content = Arc::clone(&comparer) as Arc<dyn Content + Send>;
        match map {
            Map::Inline(extents) => add(&mut window, extents, content, &place.path),
            map => write_content(context, map, &content, &place.path, restored)?,
        }
        if window.is_full() {
            std::mem::take(&mut window).write(context)?.note(context, restored);
        }
        comparers.push(compare_zeros(context, map, &comparer).map(|()| comparer));
    }
    window.write(context)?.note(context, restored);
    Ok(comparers.into_iter().map(|comparer| comparer?.ranges()).collect())
}

fn add(window: &mut Window, extents: &[Extent], content: Arc<dyn Content + Send>, path: &Path) {
    let to = window.open(content, path.to_path_buf());
    let mut offset = 0;
    for extent in extents {
        if let Extent::Data { id, len } = *extent {
            window.piece(to, offset, id, len);
        }
        offset += extent.len();
    }
}

fn compare_zeros(context: &Context, map: &Map, comparer: &Comparer) -> Result<()> {
    for item in Extents::of(context.catalog, map) {
        let (offset, extent) = item?;
        if extent.data_len() == 0 {
            let range = offset..offset + extent.len();
            differing_zeros(context, &comparer.file, &comparer.path, range, &mut |offset, len| {
                comparer.add(offset, len)
            })?;
        }
    }
    Ok(())
}

/// Takes what would be restored, and compares it with what is there.
struct Comparer {
    file: File,
    path: PathBuf,
    /// What differs: offset and length, in no order.
    found: Mutex<Vec<(u64, u64)>>,
}

impl Comparer {
    fn add(&self, offset: u64, len: u64) -> Result<()> {
        let mut found =
            self.found.lock().map_err(|_| Error::Internal("a thread that compares ended early"))?;
        found.push((offset, len));
        Ok(())
    }

    fn ranges(&self) -> Result<Ranges> {
        let mut found =
            self.found.lock().map_err(|_| Error::Internal("a thread that compares ended early"))?;
        found.sort_unstable();
        let mut ranges = Ranges::default();
        found.iter().for_each(|&(offset, len)| ranges.push(offset, len));
        Ok(ranges)
    }
}

impl Content for Comparer {
    fn size(&self) -> u64 {
        device_len(&self.file).unwrap_or_default()
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut there = vec![0; bytes.len()];
        let read = read_at(&self.file, &mut there, offset).at("read", &self.path)?;
        match read == bytes.len() && there == bytes {
            true => Ok(()),
            false => self.add(offset, bytes.len() as u64),
        }
    }

    /// Zeros are compared apart, where a stop can be heard.
    fn zero_at(&self, _: u64, _: u64, _: Empty) -> Result<()> {
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        read_at(&self.file, buffer, offset).at("read", &self.path).map(drop)
    }

    fn counts(&self) -> Counts {
        Counts::default()
    }
}
