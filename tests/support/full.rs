//! A file system that fills up.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use super::make::{Random, change, tree};
use super::tree::read;
use super::world::States;
use super::{Varv, args};

/// Makes a source and backs it up, with random changes, until there is no room left; what it was
/// each time, by the tag of the snapshot.
pub fn back_up_until_full(varv: &Varv, options: &[OsString]) -> (PathBuf, States) {
    let source = varv.dir("source");
    tree(&source, 1);
    let mut random = Random(3);
    let mut states = States::new();
    for number in 0..100 {
        change(&source, &mut random);
        let len = random.below(2 << 20) as usize;
        fs::write(source.join("more"), random.bytes(len)).unwrap();
        let tag = format!("run-{number}");
        states.insert(tag.clone(), read(&source));
        let done = varv.run(&[args!["backup", "-q", "--tag", &tag, &source], options].concat());
        if done.code != Some(0) {
            done.expect(1, args!["backup"]);
            done.says(&["No space left", "free space", "varv forget", "varv prune"]);
            return (source, states);
        }
    }
    panic!("it is never full");
}
