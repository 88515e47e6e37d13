//! The crash disk as SQLite sees it: `sqlite3_vfs` and `sqlite3_io_methods` (<https://sqlite.org/c3ref/vfs.html>).
//!
//! A path is the name of a mounted disk, a slash, and the name of the file.

// SQLite calls through C function pointers and hands out raw pointers.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Once, Weak};

use libsqlite3_sys as sqlite;

use super::parking::Shared;
use super::shm::{Held, Shm, ShmLock};
use super::state::{DiskError, Opened, State};

/// The name that the VFS is registered under.
pub(super) const VFS_NAME: &CStr = c"feiqian-crash-disk";

/// Longest path.
const PATH_BYTES_MAX: c_int = 512;

type SharedState = Arc<Shared<State>>;

static MOUNTED: Shared<BTreeMap<String, Weak<Shared<State>>>> = Shared::new(BTreeMap::new());
static NEXT: AtomicU64 = AtomicU64::new(1);
static REGISTERED: Once = Once::new();

/// Makes a disk known by a new name, for as long as it lives.
pub(super) fn mount(state: &SharedState) -> String {
    REGISTERED.call_once(register);
    let name = format!("disk-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut mounted = MOUNTED.lock();
    mounted.retain(|_, state| state.strong_count() > 0);
    mounted.insert(name.clone(), Arc::downgrade(state));
    name
}

/// Makes the crash disk the default VFS and SQLite's generator start anew from it.
pub(super) fn fix_randomness() {
    REGISTERED.call_once(register);
    // SAFETY: the VFS found is the registered one, which lives as long as the process; asking for no bytes resets the generator.
    unsafe {
        let vfs = sqlite::sqlite3_vfs_find(VFS_NAME.as_ptr());
        assert!(!vfs.is_null(), "it was registered");
        let registered = sqlite::sqlite3_vfs_register(vfs, 1);
        assert_eq!(registered, sqlite::SQLITE_OK, "SQLite takes it as its default");
        sqlite::sqlite3_randomness(0, std::ptr::null_mut());
    }
}

fn register() {
    let vfs = Box::leak(Box::new(sqlite::sqlite3_vfs {
        iVersion: 2,
        szOsFile: size_of::<File>() as c_int,
        mxPathname: PATH_BYTES_MAX,
        pNext: std::ptr::null_mut(),
        zName: VFS_NAME.as_ptr(),
        pAppData: std::ptr::null_mut(),
        xOpen: Some(open),
        xDelete: Some(delete),
        xAccess: Some(access),
        xFullPathname: Some(full_pathname),
        xDlOpen: None,
        xDlError: None,
        xDlSym: None,
        xDlClose: None,
        xRandomness: Some(randomness),
        xSleep: Some(sleep),
        xCurrentTime: Some(current_time),
        xGetLastError: Some(get_last_error),
        xCurrentTimeInt64: Some(current_time_int64),
        xSetSystemCall: None,
        xGetSystemCall: None,
        xNextSystemCall: None,
    }));
    // SAFETY: the structure is leaked, so it lives as long as the process, and all its functions are those below.
    let registered = unsafe { sqlite::sqlite3_vfs_register(vfs, 0) };
    assert_eq!(registered, sqlite::SQLITE_OK, "SQLite takes a complete VFS");
}

static METHODS: sqlite::sqlite3_io_methods = sqlite::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// What SQLite allocates for an open file (`szOsFile`); the first field is what it knows of it.
#[repr(C)]
struct File {
    base: sqlite::sqlite3_file,
    handle: *mut Handle,
}

struct Handle {
    state: SharedState,
    opened: Opened,
    level: c_int,
    shm: Option<Arc<Shm>>,
    held: Held,
    /// A file without a name of its own is removed when it is closed.
    remove_at_close: Option<String>,
}

/// The handle of an open file.
///
/// # Safety
/// `file` must have been opened by [`open`] and not closed. SQLite uses a file from one thread at a time.
unsafe fn handle<'a>(file: *mut sqlite::sqlite3_file) -> &'a mut Handle {
    // SAFETY: `open` put a leaked box there, and only `close` takes it back.
    unsafe { &mut *(*file.cast::<File>()).handle }
}

fn code(error: DiskError, otherwise: c_int) -> c_int {
    match error {
        DiskError::Dead => otherwise,
        DiskError::Full => sqlite::SQLITE_FULL,
        DiskError::Missing => sqlite::SQLITE_CANTOPEN,
    }
}

/// The disk and the file of a path.
///
/// # Safety
/// `path` must be a C string.
unsafe fn resolve(path: *const c_char) -> Option<(SharedState, String)> {
    // SAFETY: as the caller promises.
    let path = unsafe { CStr::from_ptr(path) }.to_str().ok()?;
    let (disk, file) = path.split_once('/')?;
    Some((MOUNTED.lock().get(disk)?.upgrade()?, file.to_owned()))
}

unsafe extern "C" fn open(
    _: *mut sqlite::sqlite3_vfs,
    path: sqlite::sqlite3_filename,
    file: *mut sqlite::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let file = file.cast::<File>();
    // SAFETY: SQLite gives `szOsFile` bytes for the file; without methods it will not close what could not be opened.
    unsafe { (*file).base.pMethods = std::ptr::null() };
    let resolved = if path.is_null() {
        let temporary = Arc::new(Shared::new(State::default()));
        Some((temporary, "temporary".to_owned()))
    } else {
        // SAFETY: a path that is not null is a C string.
        unsafe { resolve(path) }
    };
    let Some((state, name)) = resolved else {
        return sqlite::SQLITE_CANTOPEN;
    };
    let create = path.is_null() || flags & sqlite::SQLITE_OPEN_CREATE != 0;
    let opened = match state.lock().open(&name, create) {
        Ok(opened) => opened,
        Err(error) => return code(error, sqlite::SQLITE_CANTOPEN),
    };
    let remove_at_close = (flags & sqlite::SQLITE_OPEN_DELETEONCLOSE != 0).then_some(name);
    let handle = Handle {
        state,
        opened,
        level: sqlite::SQLITE_LOCK_NONE,
        shm: None,
        held: Held::default(),
        remove_at_close,
    };
    // SAFETY: `file` as above; `out_flags` may be null.
    unsafe {
        (*file).handle = Box::into_raw(Box::new(handle));
        (*file).base.pMethods = &raw const METHODS;
        if !out_flags.is_null() {
            *out_flags = flags;
        }
    }
    sqlite::SQLITE_OK
}

unsafe extern "C" fn close(file: *mut sqlite::sqlite3_file) -> c_int {
    // SAFETY: SQLite closes an open file once; the box is the one that `open` leaked.
    let mut handle = unsafe { Box::from_raw((*file.cast::<File>()).handle) };
    set_level(&mut handle, sqlite::SQLITE_LOCK_NONE);
    if let Some(shm) = handle.shm.take() {
        shm.release(&mut handle.held);
    }
    let mut state = handle.state.lock();
    if let Some(name) = &handle.remove_at_close
        && state.is_alive(handle.opened)
    {
        // It may be gone already; then there is nothing to do.
        let _ = state.remove(name, false);
    }
    state.close(handle.opened);
    sqlite::SQLITE_OK
}

unsafe extern "C" fn delete(
    _: *mut sqlite::sqlite3_vfs,
    path: *const c_char,
    sync_directory: c_int,
) -> c_int {
    // SAFETY: SQLite gives a C string.
    let Some((state, name)) = (unsafe { resolve(path) }) else {
        return sqlite::SQLITE_IOERR_DELETE;
    };
    match state.lock().remove(&name, sync_directory != 0) {
        Ok(()) => sqlite::SQLITE_OK,
        Err(DiskError::Missing) => sqlite::SQLITE_IOERR_DELETE_NOENT,
        Err(error) => code(error, sqlite::SQLITE_IOERR_DELETE),
    }
}

unsafe extern "C" fn access(
    _: *mut sqlite::sqlite3_vfs,
    path: *const c_char,
    _: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives a C string.
    let exists = unsafe { resolve(path) }.is_some_and(|(state, name)| state.lock().exists(&name));
    // SAFETY: `out` is where SQLite wants the answer.
    unsafe { *out = c_int::from(exists) };
    sqlite::SQLITE_OK
}

unsafe extern "C" fn full_pathname(
    _: *mut sqlite::sqlite3_vfs,
    path: *const c_char,
    room: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: SQLite gives a C string, and `room` bytes for the answer.
    unsafe {
        let bytes = CStr::from_ptr(path).to_bytes_with_nul();
        if bytes.len() > room as usize {
            return sqlite::SQLITE_CANTOPEN;
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), out, bytes.len());
    }
    sqlite::SQLITE_OK
}

unsafe extern "C" fn randomness(_: *mut sqlite::sqlite3_vfs, count: c_int, out: *mut c_char) -> c_int {
    // SAFETY: SQLite gives `count` bytes. Nothing here must be hard to guess.
    unsafe { std::ptr::write_bytes(out, 7, count as usize) };
    count
}

/// A connection that waits for a lock goes on at once: another thread may have released it.
unsafe extern "C" fn sleep(_: *mut sqlite::sqlite3_vfs, microseconds: c_int) -> c_int {
    std::thread::yield_now();
    microseconds
}

/// Noon of 2000-01-01 as a Julian day: no core asks SQLite for the time.
const JULIAN_MS: i64 = 211_813_488_000_000;

unsafe extern "C" fn current_time(_: *mut sqlite::sqlite3_vfs, out: *mut f64) -> c_int {
    // SAFETY: `out` is where SQLite wants the answer.
    unsafe { *out = 2_451_545.0 };
    sqlite::SQLITE_OK
}

unsafe extern "C" fn current_time_int64(
    _: *mut sqlite::sqlite3_vfs,
    out: *mut sqlite::sqlite3_int64,
) -> c_int {
    // SAFETY: `out` is where SQLite wants the answer.
    unsafe { *out = JULIAN_MS };
    sqlite::SQLITE_OK
}

unsafe extern "C" fn get_last_error(_: *mut sqlite::sqlite3_vfs, _: c_int, _: *mut c_char) -> c_int {
    0
}

unsafe extern "C" fn read(
    file: *mut sqlite::sqlite3_file,
    into: *mut c_void,
    count: c_int,
    offset: sqlite::sqlite3_int64,
) -> c_int {
    // SAFETY: an open file, and `count` bytes for the answer.
    let (handle, into) =
        unsafe { (handle(file), std::slice::from_raw_parts_mut(into.cast::<u8>(), count as usize)) };
    match handle.state.lock().read(handle.opened, offset as usize, into) {
        Ok(there) if there == into.len() => sqlite::SQLITE_OK,
        Ok(_) => sqlite::SQLITE_IOERR_SHORT_READ,
        Err(error) => code(error, sqlite::SQLITE_IOERR_READ),
    }
}

unsafe extern "C" fn write(
    file: *mut sqlite::sqlite3_file,
    from: *const c_void,
    count: c_int,
    offset: sqlite::sqlite3_int64,
) -> c_int {
    // SAFETY: an open file, and `count` bytes to write.
    let (handle, from) =
        unsafe { (handle(file), std::slice::from_raw_parts(from.cast::<u8>(), count as usize)) };
    match handle.state.lock().write(handle.opened, offset as usize, from) {
        Ok(()) => sqlite::SQLITE_OK,
        Err(error) => code(error, sqlite::SQLITE_IOERR_WRITE),
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite::sqlite3_file, len: sqlite::sqlite3_int64) -> c_int {
    // SAFETY: an open file.
    let handle = unsafe { handle(file) };
    match handle.state.lock().truncate(handle.opened, len as usize) {
        Ok(()) => sqlite::SQLITE_OK,
        Err(error) => code(error, sqlite::SQLITE_IOERR_TRUNCATE),
    }
}

unsafe extern "C" fn sync(file: *mut sqlite::sqlite3_file, _: c_int) -> c_int {
    // SAFETY: an open file.
    let handle = unsafe { handle(file) };
    let delay = handle.state.lock().sync_delay;
    if !delay.is_zero() {
        std::thread::sleep(delay);
    }
    match handle.state.lock().sync(handle.opened) {
        Ok(()) => sqlite::SQLITE_OK,
        Err(error) => code(error, sqlite::SQLITE_IOERR_FSYNC),
    }
}

unsafe extern "C" fn file_size(file: *mut sqlite::sqlite3_file, out: *mut sqlite::sqlite3_int64) -> c_int {
    // SAFETY: an open file, and `out` is where SQLite wants the answer.
    let handle = unsafe { handle(file) };
    match handle.state.lock().len(handle.opened) {
        Ok(len) => {
            // SAFETY: as above.
            unsafe { *out = len as sqlite::sqlite3_int64 };
            sqlite::SQLITE_OK
        }
        Err(error) => code(error, sqlite::SQLITE_IOERR_FSTAT),
    }
}

unsafe extern "C" fn lock(file: *mut sqlite::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: an open file.
    let handle = unsafe { handle(file) };
    let mut state = handle.state.lock();
    let Ok(locks) = state.locks(handle.opened) else {
        return sqlite::SQLITE_IOERR_LOCK;
    };
    if handle.level >= level {
        return sqlite::SQLITE_OK;
    }
    let ours_reserved = handle.level >= sqlite::SQLITE_LOCK_RESERVED;
    match level {
        sqlite::SQLITE_LOCK_SHARED => {
            if locks.pending {
                return sqlite::SQLITE_BUSY;
            }
            locks.shared += 1;
        }
        sqlite::SQLITE_LOCK_RESERVED => {
            if locks.reserved {
                return sqlite::SQLITE_BUSY;
            }
            locks.reserved = true;
        }
        _ => {
            if locks.reserved && !ours_reserved {
                return sqlite::SQLITE_BUSY;
            }
            locks.reserved = true;
            locks.pending = true;
            if locks.shared > 1 {
                handle.level = sqlite::SQLITE_LOCK_PENDING;
                return sqlite::SQLITE_BUSY;
            }
        }
    }
    handle.level = level;
    sqlite::SQLITE_OK
}

fn set_level(handle: &mut Handle, level: c_int) {
    if handle.level <= level {
        return;
    }
    let mut state = handle.state.lock();
    // A handle that is dead holds nothing any more.
    if let Ok(locks) = state.locks(handle.opened) {
        if handle.level > sqlite::SQLITE_LOCK_SHARED {
            locks.reserved = false;
            locks.pending = false;
        }
        if level == sqlite::SQLITE_LOCK_NONE {
            locks.shared -= 1;
        }
    }
    handle.level = level;
}

unsafe extern "C" fn unlock(file: *mut sqlite::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: an open file.
    set_level(unsafe { handle(file) }, level);
    sqlite::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(file: *mut sqlite::sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: an open file, and `out` is where SQLite wants the answer.
    let handle = unsafe { handle(file) };
    let reserved = handle.state.lock().locks(handle.opened).is_ok_and(|locks| locks.reserved);
    // SAFETY: as above.
    unsafe { *out = c_int::from(reserved) };
    sqlite::SQLITE_OK
}

unsafe extern "C" fn file_control(_: *mut sqlite::sqlite3_file, _: c_int, _: *mut c_void) -> c_int {
    sqlite::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_: *mut sqlite::sqlite3_file) -> c_int {
    4_096
}

/// As the disks that SQLite assumes by default: a write leaves the bytes beside it alone, and nothing more.
unsafe extern "C" fn device_characteristics(_: *mut sqlite::sqlite3_file) -> c_int {
    sqlite::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn shm_map(
    file: *mut sqlite::sqlite3_file,
    region: c_int,
    bytes: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: an open file.
    let handle = unsafe { handle(file) };
    let shm = match &handle.shm {
        Some(shm) if handle.state.lock().is_alive(handle.opened) => Arc::clone(shm),
        Some(_) => return sqlite::SQLITE_IOERR_SHMMAP,
        None => match handle.state.lock().shm(handle.opened) {
            Ok(shm) => Arc::clone(handle.shm.insert(shm)),
            Err(_) => return sqlite::SQLITE_IOERR_SHMMAP,
        },
    };
    let start = shm.region(region as usize, bytes as usize, extend != 0);
    // SAFETY: `out` is where SQLite wants the answer; the region lives while the handle holds `shm`.
    unsafe { *out = start.map_or(std::ptr::null_mut(), <*mut u64>::cast) };
    sqlite::SQLITE_OK
}

unsafe extern "C" fn shm_lock(
    file: *mut sqlite::sqlite3_file,
    first: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: an open file.
    let handle = unsafe { handle(file) };
    let how = if flags & sqlite::SQLITE_SHM_UNLOCK != 0 {
        ShmLock::Unlock
    } else if flags & sqlite::SQLITE_SHM_SHARED != 0 {
        ShmLock::Shared
    } else {
        ShmLock::Exclusive
    };
    let alive = handle.state.lock().is_alive(handle.opened);
    match &handle.shm {
        Some(shm) if alive || how == ShmLock::Unlock => {
            if shm.lock(&mut handle.held, first as usize, count as usize, how) {
                sqlite::SQLITE_OK
            } else {
                sqlite::SQLITE_BUSY
            }
        }
        _ => sqlite::SQLITE_IOERR_SHMLOCK,
    }
}

unsafe extern "C" fn shm_barrier(_: *mut sqlite::sqlite3_file) {
    fence(Ordering::SeqCst);
}

unsafe extern "C" fn shm_unmap(file: *mut sqlite::sqlite3_file, _: c_int) -> c_int {
    // SAFETY: an open file.
    let handle = unsafe { handle(file) };
    if let Some(shm) = handle.shm.take() {
        shm.release(&mut handle.held);
    }
    sqlite::SQLITE_OK
}
