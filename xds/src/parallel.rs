//! The same for each of many things, on as many threads as there are processors.

use std::cmp::Reverse;
use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// More threads than this find too little to do between what is done one by one.
const THREADS_MAX: usize = 4;
/// Fewer things than this are done before a thread has begun.
const EACH_MIN: usize = 64;

/// What `of` makes of each of `things`, in their order.
pub(crate) fn map<T: Send, R: Send>(things: Vec<T>, of: impl Fn(T) -> R + Sync) -> Vec<R> {
    let available = thread::available_parallelism().map_or(1, NonZero::get);
    map_on(
        (available.min(THREADS_MAX), thread::Builder::new),
        things,
        of,
    )
}

fn map_on<T: Send, R: Send>(
    (threads, builder): (usize, fn() -> thread::Builder),
    mut things: Vec<T>,
    of: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let each = things.len().div_ceil(threads.max(1)).max(EACH_MIN);
    if things.len() <= each {
        return things.into_iter().map(of).collect();
    }
    let mut parts = Vec::new();
    while things.len() > each {
        parts.push(things.split_off(things.len() - each));
    }
    parts.push(things);
    let others = parts.len() - 1;
    // Who has a part gives what becomes of it; the first is the last of these.
    let parts = Mutex::new(parts.into_iter().enumerate().collect::<Vec<_>>());
    let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || {
        let mut made = Vec::new();
        while let Some((nth, part)) = next() {
            made.push((nth, part.into_iter().map(&of).collect::<Vec<R>>()));
        }
        made
    };
    let mut made = thread::scope(|scope| {
        // Where the system gives no thread, those that there are do it all.
        let others: Vec<_> = (0..others)
            .map_while(|_| builder().spawn_scoped(scope, work).ok())
            .collect();
        let mut made = work();
        for other in others {
            match other.join() {
                Ok(parts) => made.extend(parts),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        made
    });
    made.sort_unstable_by_key(|(nth, _)| Reverse(*nth));
    made.into_iter().flat_map(|(_, part)| part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTS: [(usize, usize); 6] = [
        (0, 0),
        (1, 1000),
        (2, 1),
        (2, 1000),
        (3, 1001),
        (4, 64 * 3 + 1),
    ];

    fn stays_in_order(builder: fn() -> thread::Builder) {
        for (threads, n) in COUNTS {
            let things: Vec<usize> = (0..n).collect();
            let made = map_on((threads, builder), things.clone(), |n| n * 2);
            let expected: Vec<usize> = things.into_iter().map(|n| n * 2).collect();
            assert_eq!(made, expected, "{threads} threads, {n} things");
        }
    }

    #[test]
    fn the_order_stays_however_many_threads_there_are() {
        stays_in_order(thread::Builder::new);
    }

    /// What broke: a system that gave no thread was a panic.
    #[test]
    fn where_the_system_gives_no_thread_it_is_done_all_the_same() {
        // There is no room for its stack.
        let none = || thread::Builder::new().stack_size(1 << 60);
        assert!(none().spawn(|| ()).is_err());
        stays_in_order(none);
    }
}
