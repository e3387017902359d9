//! Checkpoints of backups of volumes: whatever happens to them, a volume that is gone on with is
//! what it was, and prune keeps what they need for as long as somebody may go on.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use support::make::bytes;
use support::world::{STOP, World, backup_options};
use varv::backup::{self, BackupOptions, Finished, Known, Share, Source, Volume};
use varv::error::Result;
use varv::format::checkpoint::Checkpoint;
use varv::format::snapshot::LogicalVolume;
use varv::history::resolve::find_path;
use varv::id::PackId;
use varv::observe::Silent;
use varv::repo::Intent;
use varv::restore::{self, RestoreOptions};
use varv::store::Store;
use varv::upkeep::prune::{self, PruneOptions};

const LEN: usize = 7 << 20;

/// A volume beside a world's source.
struct Logical {
    path: PathBuf,
    content: Vec<u8>,
}

impl Logical {
    fn new(world: &World) -> Self {
        let (path, mut content) = (world.source.with_file_name("volume"), bytes(1, LEN));
        content[1 << 20..1 << 21].fill(0);
        fs::write(&path, &content).unwrap();
        Self { path, content }
    }

    /// Backs it up and goes on with what is found; how far it was done before.
    fn backup(&self, world: &World) -> Result<u64> {
        let (repo, catalog) = world.opened(Intent::Add)?;
        let name = self.path.as_os_str().as_bytes().to_vec();
        let before = repo.checkpoints()?.pop();
        let finished = before.as_ref().map(|it| Finished::of(&catalog, it, &name)).transpose()?.flatten();
        let volume = Volume {
            name: Some(name),
            path: self.path.clone(),
            known: Known::Full { layout: None, reason: None },
            spot_check: Share::Default,
            lvm: Some(LogicalVolume { pool: "pool".into(), ..LogicalVolume::default() }),
            used: None,
            finished,
        };
        let options = BackupOptions {
            sources: vec![Source::Volume(Box::new(volume))],
            label: "volumes".into(),
            checkpoint_every: Some(1),
            ..backup_options(&world.source, vec!["volume".into()])
        };
        let outcome = backup::run(&repo, &catalog, &options, &Silent, &STOP)?;
        catalog.close(&Silent)?;
        Ok(outcome.volumes[0].bytes_resumed)
    }

    fn assert_is_in(&self, world: &World) {
        let (repo, catalog) = world.opened(Intent::Read).unwrap();
        let newest = repo.snapshots().unwrap().listed.pop().unwrap();
        let entry = find_path(&catalog, &newest.snapshot, self.path.as_os_str().as_bytes()).unwrap().unwrap();
        let target = self.path.with_file_name("restored");
        let options = RestoreOptions { overwrite: restore::Overwrite::Always, ..RestoreOptions::default() };
        restore::run(&repo, &catalog, &entry, &target, &options, &Silent, &STOP).unwrap();
        assert!(fs::read(&target).unwrap() == self.content);
    }
}

fn checkpoints(world: &World) -> Vec<Checkpoint> {
    world.open(Intent::Read).unwrap().checkpoints().unwrap()
}

#[test]
fn a_loss_of_power_costs_what_was_read_since_the_last_one() {
    let world = World::new();
    let volume = Logical::new(&world);
    let before = world.store.after_power_cut(0);
    let first = before.points();
    let trial = world.with(before, true);
    volume.backup(&trial).unwrap();
    let all = trial.store.points() - first;
    let mut resumed = 0;
    for number in 0..24 {
        let trial = world.with(world.store.after_power_cut(0), true);
        trial.store.cut_power_at(all * number / 24 + 1);
        volume.backup(&trial).unwrap();
        let after = world.with(trial.store.after_power_cut(number), number % 2 == 0);
        let is_done = after.tags().len() > 1;
        resumed += u64::from(volume.backup(&after).unwrap() > 0 && !is_done);
        volume.assert_is_in(&after);
    }
    assert!(resumed >= 8, "only {resumed} of 24 were gone on with");
}

/// How many packs go.
fn prune(world: &World) -> u64 {
    pruned(world).1
}

/// Why interrupted backups were forgotten, "too old" or not, and how many packs went. A plan alone, as for
/// a dry run, has said so before.
fn pruned(world: &World) -> (Vec<bool>, u64) {
    let options = PruneOptions { max_unused: 0.0, ..PruneOptions::default() };
    let mut repo = world.open(Intent::Add).unwrap();
    let planned = prune::plan(&repo, &options, &Silent, &STOP).unwrap();
    let foreseen = planned.plan.abandoned.clone();
    let done = prune::execute(&mut repo, planned, &options, Duration::ZERO, "test", &Silent, &STOP);
    let (plan, done) = done.unwrap();
    assert_eq!(plan.abandoned, foreseen);
    (foreseen.iter().map(|it| it.is_too_old).collect(), done.packs_removed)
}

/// A run that came to its last checkpoint and no further.
fn interrupted(world: &World, volume: &Logical) {
    volume.backup(world).unwrap();
    remove_newest(world);
}

/// The newest snapshot never was.
fn remove_newest(world: &World) {
    let repo = world.open(Intent::Add).unwrap();
    let id = repo.snapshots().unwrap().listed.pop().unwrap().id;
    world.store.remove(&varv::repo::layout::snapshot(&id)).unwrap();
}

fn packs(world: &World) -> HashMap<PackId, u64> {
    world.open(Intent::Read).unwrap().list_packs().unwrap()
}

#[test]
fn prune_keeps_what_is_needed_to_go_on() {
    let world = World::new();
    prune(&world);
    let volume = Logical::new(&world);
    interrupted(&world, &volume);
    // The nodes of the snapshot that never was may go, but no data.
    prune(&world);
    assert!(volume.backup(&world).unwrap() > LEN as u64 / 2);
    volume.assert_is_in(&world);
}

#[test]
fn what_nobody_goes_on_with_is_pruned() {
    let world = World::new();
    prune(&world);
    let volume = Logical::new(&world);
    interrupted(&world, &volume);
    // As if it had begun a month ago.
    let repo = world.open(Intent::Add).unwrap();
    let mut old = repo.checkpoints().unwrap().pop().unwrap();
    repo.forget_checkpoints(|_| true).unwrap();
    old.snapshot.time = Timestamp::now() - Duration::from_secs(30 * 24 * 3600);
    repo.remember_checkpoint(old).unwrap();
    drop(repo);
    assert!(checkpoints(&world).is_empty());
    let (is_too_old, packs) = pruned(&world);
    assert!(is_too_old == [true] && packs > LEN as u64 / (200 << 10) / 2);
    assert!(!world.store.names().iter().any(|name| name.contains("checkpoint")));
    assert_eq!(volume.backup(&world).unwrap(), 0);
    // Something that it needs is gone: it needs nothing more, and nobody goes on with it.
    world.open(Intent::Add).unwrap().forget_checkpoints(|_| true).unwrap();
    let other = Logical { path: volume.path.with_file_name("other"), content: bytes(9, LEN) };
    fs::write(&other.path, &other.content).unwrap();
    let before = world.store.names();
    interrupted(&world, &other);
    let is_new_pack = |name: &&String| name.starts_with("packs/") && !before.contains(name);
    let names = world.store.names();
    world.store.remove(names.iter().find(is_new_pack).unwrap()).unwrap();
    let (is_too_old, packs) = pruned(&world);
    assert!(is_too_old == [false] && packs > LEN as u64 / (200 << 10) / 2);
    assert!(checkpoints(&world).is_empty());
    assert_eq!(other.backup(&world).unwrap(), 0);
    other.assert_is_in(&world);
}

/// What a checkpoint's frames are made against is gone, and no snapshot needs it.
#[test]
fn a_lost_base_of_an_unfinished_backup_alone_does_not_stop_prune() {
    let world = World::new();
    let mut volume = Logical::new(&world);
    volume.backup(&world).unwrap();
    world.open(Intent::Add).unwrap().forget_checkpoints(|_| true).unwrap();
    let first = packs(&world);
    // All chunks are new, and like those before.
    volume.content.iter_mut().step_by(1000).for_each(|byte| *byte = byte.wrapping_add(1));
    fs::write(&volume.path, &volume.content).unwrap();
    interrupted(&world, &volume);
    let (_, catalog) = world.opened(Intent::Read).unwrap();
    let all = packs(&world);
    let of_second = all.iter().filter(|(id, _)| !first.contains_key(id));
    let base = of_second
        .flat_map(|(id, len)| catalog.reader().open(id, *len).unwrap().trailer.packs.clone())
        .find(|base| first.contains_key(base))
        .expect("nothing is made against the first backup");
    drop(catalog);
    let lost = || pruned(&world).0;
    assert!(lost().is_empty());
    assert_eq!(checkpoints(&world).len(), 1);
    remove_newest(&world);
    world.store.remove(&varv::repo::layout::pack(&base)).unwrap();
    assert_eq!(lost(), [false]);
    assert!(checkpoints(&world).is_empty() && lost().is_empty());
    assert_eq!(volume.backup(&world).unwrap(), 0);
    volume.assert_is_in(&world);
}
