//! Two functions in place of libunwind's (Itanium C++ ABI), for the program that `.ci/small-binary` builds: in it a panic ends the
//! process, and there are no tables by which frames could be found. The standard library is compiled for other programs too; only
//! when the compiler sees these bodies does it leave out the code that shows backtraces and frees what frames own: 240 KB.
#![allow(unsafe_code)] // For the names, which no other function of the program may have. There is no unsafe block.

use std::ffi::{c_int, c_void};
use std::process::abort;

/// Calls back for each frame of the stack. Here it finds none, as libunwind does without tables.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_callback: *const c_void, _argument: *mut c_void) -> c_int {
    0
}

/// Goes on with a panic after a frame is cleaned up. No panic gets so far.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume(_exception: *mut c_void) -> ! {
    abort()
}
