use std::collections::HashMap;

use super::*;
use crate::repo::schema;
use proptest::prelude::*;
use rustix::fs::{FileType, Mode};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

const KEY: Key = [7; 32];
const REPOSITORY: RepositoryId = RepositoryId([3; 16]);

fn chunk(number: u64) -> ChunkId {
    ChunkId::of(&KEY, &number.to_le_bytes())
}

fn chunks(numbers: impl IntoIterator<Item = u64>) -> Vec<ChunkId> {
    numbers.into_iter().map(chunk).collect()
}

fn pack_id(number: u64) -> PackId {
    PackId::of(&number.to_le_bytes())
}

fn new_pack(number: u64, ids: &[ChunkId]) -> NewPack<'_> {
    let trailer_check = [number as u8; 16];
    NewPack { id: pack_id(number), class: Class::Data, len: 1000 + number, trailer_check, ids, before: None }
}

fn open(path: &Path) -> Index {
    match Index::open(path, Access::ReadWrite, &KEY, &REPOSITORY).unwrap() {
        Opened::Usable(index) => *index,
        Opened::Stale(why) => panic!("stale: {why}"),
    }
}

fn stale(path: &Path, access: Access, key: &Key, repository: &RepositoryId) -> String {
    match Index::open(path, access, key, repository).unwrap() {
        Opened::Usable(_) => panic!("usable"),
        Opened::Stale(why) => why,
    }
}

/// A new index with `packs` packs of `each` chunks, numbered through; one run a pack.
fn filled(folder: &TempDir, packs: u64, each: u64) -> (PathBuf, Index) {
    let path = folder.path().join("index.sqlite");
    let mut index = Index::create(&path, &KEY, &REPOSITORY).unwrap();
    for pack in 0..packs {
        index.add_packs(&[new_pack(pack, &chunks(pack * each..(pack + 1) * each))]).unwrap();
    }
    (path, index)
}

#[test]
fn what_was_added_is_found() {
    let folder = TempDir::new().unwrap();
    let (path, mut index) = filled(&folder, 3, 500);
    index.add_packs(&[new_pack(1, &chunks([9999]))]).unwrap();
    assert_eq!(index.packs().len(), 3);
    let found = index.locate(&chunks([1499, 0, 500, 1500, 0])).unwrap();
    let at = |pack, slot| Some(Location { pack, slot });
    assert_eq!(found, [at(3, 499), at(1, 0), at(2, 0), None, at(1, 0)]);
    let ordinal = index.ordinal(Location { pack: 3, slot: 499 }).unwrap();
    assert_eq!((ordinal, index.location(ordinal)), (1499, at(3, 499)));
    assert_eq!((index.location(1500), index.ordinal(Location { pack: 3, slot: 500 })), (None, None));
    index.close().unwrap();
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["index.sqlite"]);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let index = open(&path);
    assert_eq!(index.pack(2).unwrap().len, 1001);
    assert_eq!(index.counts().unwrap().chunks, 1500);
}

#[test]
fn numbers_are_never_used_twice() {
    let folder = TempDir::new().unwrap();
    let (_, mut index) = filled(&folder, 2, 10);
    index.remove_packs(&[pack_id(1)]).unwrap();
    assert_eq!(index.locate(&chunks([15])).unwrap(), [None]);
    index.add_packs(&[new_pack(1, &chunks([15]))]).unwrap();
    assert_eq!(index.locate(&chunks([15, 16])).unwrap(), [Some(Location { pack: 3, slot: 0 }), None]);
    assert_eq!(index.pack(3).unwrap().first_ordinal, 20);
}

#[test]
fn filters_say_what_is_unknown() {
    let folder = TempDir::new().unwrap();
    let (path, mut index) = filled(&folder, 9, 3000);
    assert!(index.may_contain(&chunk(99_999)));
    index.load_filters().unwrap();
    let mut other = open(&path);
    other.add_packs(&[new_pack(9, &chunks(27_000..30_000))]).unwrap();
    other.merge_if_due(u64::MAX).unwrap();
    index.refresh().unwrap();
    assert!(chunks(0..30_000).iter().all(|id| index.may_contain(id)));
    let passed = chunks(30_000..60_000).iter().filter(|id| index.may_contain(id)).count();
    assert!(passed < 30_000 * 3 * 8 / 1000, "{passed}");
}

#[test]
fn filters_beyond_their_share_are_done_without() {
    let folder = TempDir::new().unwrap();
    let (_, mut index) = filled(&folder, 3, 3000);
    index.add_packs(&[new_pack(4, &chunks(20_000..30_000))]).unwrap();
    index.state.filters_max = 3 * 4224;
    index.refresh().unwrap();
    let loaded: Vec<bool> = index.state.runs.iter().map(|run| run.filter.is_some()).collect();
    assert_eq!(loaded, [true, true, true, false]);
    assert!(index.locate(&chunks(20_000..30_000)).unwrap().iter().all(Option::is_some));
}

#[test]
fn small_repositories_have_small_files() {
    let folder = TempDir::new().unwrap();
    let (_, mut index) = filled(&folder, 7, 60_000 / 7);
    let bytes = |index: &Index| fs::metadata(&index.path).unwrap().len() / 60_000;
    merge::checkpoint(&index.db).unwrap();
    assert!(bytes(&index) < 29, "{} bytes a chunk", bytes(&index));
    index.add_packs(&[new_pack(7, &chunks([60_000]))]).unwrap();
    index.add_packs(&[new_pack(8, &chunks(60_001..65_000))]).unwrap();
    assert!(matches!(index.merge_if_due(u64::MAX), Ok(Merge::Done(64_996))));
    merge::checkpoint(&index.db).unwrap();
    assert!(bytes(&index) < 31, "{} bytes a chunk", bytes(&index));
    assert_eq!(index.counts().unwrap().runs, 2);
}

#[test]
fn removed_packs_leave_the_file() {
    let folder = TempDir::new().unwrap();
    let (_, mut index) = filled(&folder, 6, 5000);
    let gone: Vec<PackId> = (0..5).map(pack_id).collect();
    index.remove_packs(&gone).unwrap();
    assert_eq!(index.counts().unwrap().rows, 30_000);
    assert_eq!(index.merge_if_due(u64::MAX).unwrap(), Merge::Done(0));
    let counts = index.counts().unwrap();
    assert_eq!((counts.rows, counts.runs, counts.chunks), (5000, 1, 5000));
    assert!(counts.file_bytes < 5000 * 40, "{}", counts.file_bytes);
    index.verify().unwrap();
}

#[test]
fn merges_are_put_off() {
    let folder = TempDir::new().unwrap();
    let (path, mut index) = filled(&folder, 8, 100);
    let needed = match index.merge_if_due(1000).unwrap() {
        Merge::NoSpace(needed) => needed,
        other => panic!("{other:?}"),
    };
    let mut other = open(&path);
    let tx = write(&index.db).unwrap();
    assert_eq!(other.merge_if_due(needed).unwrap(), Merge::Busy);
    assert_eq!(other.locate(&chunks([5])).unwrap(), [Some(Location { pack: 1, slot: 5 })]);
    drop(tx);
    assert_eq!(other.merge_if_due(needed).unwrap(), Merge::Done(800));
    assert_eq!(index.locate(&chunks([5])).unwrap(), [Some(Location { pack: 1, slot: 5 })]);
    assert_eq!(index.counts().unwrap().runs, 1);
}

#[test]
fn another_index_is_stale() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("index.sqlite");
    let rw = Access::ReadWrite;
    assert_eq!(stale(&path, rw, &KEY, &REPOSITORY), "it is missing");
    fs::write(&path, []).unwrap();
    assert!(stale(&path, rw, &KEY, &REPOSITORY).contains("not an index"));
    fs::write(&path, [b'x'; 5000]).unwrap();
    assert!(stale(&path, rw, &KEY, &REPOSITORY).contains("not a database"));
    let index = Index::create(&path, &KEY, &REPOSITORY).unwrap();
    assert!(stale(&path, rw, &[0; 32], &REPOSITORY).contains("another key"));
    assert!(stale(&path, rw, &KEY, &RepositoryId([0; 16])).contains("another repository"));
    assert!(stale(&path, Access::ReadOnly, &KEY, &REPOSITORY).contains("not closed"));
    index.db.execute_batch("PRAGMA user_version = 99").unwrap();
    assert!(stale(&path, rw, &KEY, &REPOSITORY).contains("version is 99"));
    open(&Index::create(&path, &KEY, &REPOSITORY).unwrap().path);
}

#[test]
fn a_pipe_is_no_index() {
    let folder = TempDir::new().unwrap();
    for name in ["index.sqlite", "index.sqlite-wal"] {
        let (path, index) = filled(&folder, 1, 10);
        index.close().unwrap();
        let pipe = folder.path().join(name);
        let _ = fs::remove_file(&pipe);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(stale(&path, Access::ReadWrite, &KEY, &REPOSITORY), "it is not a file");
        open(&Index::create(&path, &KEY, &REPOSITORY).unwrap().path);
    }
}

#[test]
fn read_only_leaves_nothing_behind() {
    let folder = TempDir::new().unwrap();
    let (path, index) = filled(&folder, 2, 300);
    index.close().unwrap();
    let odd = folder.path().join("a b?%41#é&mode=rwc");
    fs::rename(path, &odd).unwrap();
    let Opened::Usable(mut index) = Index::open(&odd, Access::ReadOnly, &KEY, &REPOSITORY).unwrap() else {
        panic!("stale");
    };
    assert_eq!(index.locate(&chunks([599])).unwrap(), [Some(Location { pack: 2, slot: 299 })]);
    index.verify().unwrap();
    assert!(index.add_packs(&[new_pack(5, &[])]).is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    index.close().unwrap();
}

/// All that a file says, whether damaged or not, is either right or an error.
fn check_damaged(path: &Path, ids: &[ChunkId]) -> Result<bool> {
    let mut index = match Index::open(path, Access::ReadWrite, &KEY, &REPOSITORY)? {
        Opened::Stale(_) => return Ok(false),
        Opened::Usable(index) => index,
    };
    let right =
        |at: usize, found: Location| found == Location { pack: at as u32 / 600 + 1, slot: at as u32 % 600 };
    let found = index.locate(ids);
    for (at, found) in found.iter().flatten().enumerate() {
        assert!(found.is_none_or(|found| right(at, found)));
    }
    let filters = index.load_filters();
    let verified = index.verify();
    if verified.is_ok() {
        assert!(found?.iter().all(Option::is_some));
        filters?;
    }
    verified.map(|()| true)
}

#[test]
fn damage_is_an_error() {
    let folder = TempDir::new().unwrap();
    let (path, index) = filled(&folder, 3, 600);
    index.close().unwrap();
    let whole = fs::read(&path).unwrap();
    let ids = chunks(0..1800);
    let mut noticed = 0;
    for step in 0..450usize {
        let mut bytes = whole.clone();
        // Every place of the first pages, which have the structure, and samples of the others.
        let at = if step < 150 { step * 131 % 8192 } else { step * 104_729 % bytes.len() };
        bytes[at] ^= 1 << (step % 8);
        if step % 10 == 0 {
            bytes.truncate(at);
        }
        fs::write(&path, &bytes).unwrap();
        match check_damaged(&path, &ids) {
            Err(error) => {
                assert!(is_corrupt(&error), "at {at}: {error}");
                noticed += 1;
            }
            Ok(usable) => noticed += usize::from(!usable),
        }
        for name in [schema::log_path(&path), path.with_file_name("index.sqlite-shm")] {
            let _ = fs::remove_file(name);
        }
    }
    assert!(noticed > 200, "{noticed}");
}

#[test]
fn several_add_merge_and_look_up() {
    let folder = TempDir::new().unwrap();
    let (path, index) = filled(&folder, 1, 100);
    let work = |worker: u64| {
        let mut index = open(&path);
        for pack in (1..40).map(|n| n * 10 + worker) {
            let ids = chunks(pack * 1000..pack * 1000 + 300);
            index.add_packs(&[new_pack(pack, &ids)]).unwrap();
            assert!(index.locate(&ids).unwrap().iter().all(Option::is_some));
            index.merge_if_due(u64::MAX).unwrap();
        }
    };
    std::thread::scope(|scope| {
        for worker in 0..3 {
            scope.spawn(move || work(worker));
        }
    });
    drop(index);
    let mut index = open(&path);
    assert_eq!(index.packs().len(), 1 + 3 * 39);
    let ids = chunks((10..400).filter(|pack| pack % 10 < 3).flat_map(|pack| pack * 1000..pack * 1000 + 300));
    assert!(index.locate(&ids).unwrap().iter().all(Option::is_some));
    index.verify().unwrap();
}

#[derive(Debug, Clone)]
enum Step {
    Add(Vec<(u64, Vec<u64>)>),
    Remove(Vec<u64>),
    Merge,
    Reopen,
    Filters,
}

fn step() -> impl Strategy<Value = Step> {
    // Few ids, so that there are many copies, some on more than one page.
    let ids = prop_oneof![prop::collection::vec(0u64..200, 0..400), prop::collection::vec(0u64..3, 0..500)];
    prop_oneof![
        12 => prop::collection::vec((0u64..60, ids), 1..4).prop_map(Step::Add),
        3 => prop::collection::vec(0u64..60, 1..12).prop_map(Step::Remove),
        3 => Just(Step::Merge),
        1 => Just(Step::Reopen),
        1 => Just(Step::Filters),
    ]
}

type Model = HashMap<PackId, Vec<ChunkId>>;

fn apply(index: &mut Index, model: &mut Model, step: &Step) {
    match step {
        Step::Add(packs) => {
            let packs: Vec<_> =
                packs.iter().map(|(pack, ids)| (*pack, chunks(ids.iter().copied()))).collect();
            let new: Vec<NewPack> = packs.iter().map(|(pack, ids)| new_pack(*pack, ids)).collect();
            index.add_packs(&new).unwrap();
            for (pack, ids) in packs {
                model.entry(pack_id(pack)).or_insert(ids);
            }
        }
        Step::Remove(packs) => {
            let packs: Vec<PackId> = packs.iter().copied().map(pack_id).collect();
            index.remove_packs(&packs).unwrap();
            model.retain(|pack, _| !packs.contains(pack));
        }
        Step::Merge => drop(index.merge_if_due(u64::MAX).unwrap()),
        Step::Reopen => *index = open(&index.path.clone()),
        Step::Filters => index.load_filters().unwrap(),
    }
}

fn check(index: &mut Index, model: &Model) {
    let mut expected: HashMap<ChunkId, Vec<(PackId, u32)>> = HashMap::new();
    for (pack, ids) in model {
        for (slot, id) in (0..).zip(ids) {
            expected.entry(*id).or_default().push((*pack, slot));
        }
    }
    let ids = chunks(0..210);
    let found = index.locate(&ids).unwrap();
    for (id, found) in ids.iter().zip(found) {
        let mut expected = expected.remove(id).unwrap_or_default();
        let copies = index.copies(id).unwrap();
        assert_eq!(found.is_some(), !expected.is_empty());
        assert!(found.is_none_or(|found| copies.contains(&found) && index.may_contain(id)));
        let mut copies: Vec<_> =
            copies.into_iter().map(|at| (index.pack(at.pack).unwrap().id, at.slot)).collect();
        copies.sort();
        expected.sort();
        assert_eq!(copies, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn it_does_what_a_map_does(steps in prop::collection::vec((any::<bool>(), step()), 1..40)) {
        let folder = TempDir::new().unwrap();
        let (path, first) = filled(&folder, 0, 0);
        let mut handles = [first, open(&path)];
        let mut model = Model::new();
        for (which, step) in &steps {
            apply(&mut handles[usize::from(*which)], &mut model, step);
            check(&mut handles[usize::from(!which)], &model);
        }
        let [mut index, other] = handles;
        check(&mut index, &model);
        index.verify().unwrap();
        let mut seen = 0;
        index.for_each_chunk(|_, _| { seen += 1; Ok(()) }).unwrap();
        prop_assert_eq!(seen, model.values().map(Vec::len).sum::<usize>());
        other.close().unwrap();
        index.close().unwrap();
        prop_assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

/// What makes the index at `path` anew, with all its packs but the second.
fn renewal(path: &Path) -> Renewal {
    let path = path.to_path_buf();
    Box::new(move |damaged| {
        let mut index = Index::create(&path, &KEY, &REPOSITORY)?;
        let packs = damaged.packs().to_vec();
        for pack in packs.iter().filter(|pack| pack.number != 2) {
            let ids = chunks(pack.first_ordinal..pack.end_ordinal());
            let before = Some((pack.number, pack.first_ordinal));
            index.add_packs(&[NewPack { before, ..new_pack(u64::from(pack.number) - 1, &ids) }])?;
        }
        index.continue_from(damaged)?;
        Ok(index)
    })
}

#[test]
fn what_was_known_has_the_same_numbers_once_it_is_made_anew() {
    let folder = TempDir::new().unwrap();
    let (path, mut index) = filled(&folder, 4, 500);
    index.load_filters().unwrap();
    index.remove_packs(&[pack_id(3)]).unwrap();
    index.db.execute_batch("UPDATE run_3 SET rows = zeroblob(9)").unwrap();
    assert!(is_corrupt(&index.locate(&chunks([1000])).unwrap_err()));
    index.renew_by(renewal(&path));
    let found = index.locate(&chunks([1, 501, 1000, 1501])).unwrap();
    let at = |pack, slot| Some(Location { pack, slot });
    assert_eq!(found, [at(1, 1), None, at(3, 0), None]);
    assert!(index.renewed().unwrap().contains("a page is not what was written"));
    // Numbers of packs that were dropped are used up too.
    index.add_packs(&[new_pack(9, &chunks([9]))]).unwrap();
    let record = index.packs().last().unwrap();
    assert_eq!((record.number, record.first_ordinal), (5, 2000));
    index.verify().unwrap();
    index.db.execute_batch("UPDATE run_3 SET rows = zeroblob(9); DELETE FROM run_1").unwrap();
    assert!(index.verify().is_err(), "once is enough");
}

/// A look-up may be led past what is there, without an error.
#[test]
fn what_is_nowhere_is_doubted_once() {
    let folder = TempDir::new().unwrap();
    let (path, mut index) = filled(&folder, 1, 500);
    index.db.execute_batch("DELETE FROM run_1").unwrap();
    index.renew_by(renewal(&path));
    assert_eq!(index.locate(&chunks([7])).unwrap(), [None]);
    index.set_doubts(true);
    assert_eq!(index.locate(&chunks([7, 500])).unwrap(), [Some(Location { pack: 1, slot: 7 }), None]);
    assert!(index.renewed().is_some());
}
