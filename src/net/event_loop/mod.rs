//! What one iteration of the loop works with: timers, the wake-up, the run queue, coalescing, tokens.

pub(in crate::net) mod coalesce;
pub(in crate::net) mod io;
pub(in crate::net) mod run_queue;
pub(in crate::net) mod tcp;
pub mod timer_wheel;
pub mod token;
pub(in crate::net) mod wakeup;
pub(in crate::net) mod write_buffer;
