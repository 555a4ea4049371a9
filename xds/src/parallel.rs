//! The same for each of many things, on as many threads as there are processors.

use std::num::NonZero;
use std::thread;

/// More threads than this find too little to do between what is done one by one.
const THREADS_MAX: usize = 4;
/// Fewer things than this are done before a thread has begun.
const EACH_MIN: usize = 64;

/// What `of` makes of each of `things`, in their order.
pub(crate) fn map<T: Send, R: Send>(things: Vec<T>, of: impl Fn(T) -> R + Sync) -> Vec<R> {
    let available = thread::available_parallelism().map_or(1, NonZero::get);
    map_on(available.min(THREADS_MAX), things, of)
}

fn map_on<T: Send, R: Send>(
    threads: usize,
    mut things: Vec<T>,
    of: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let each = things.len().div_ceil(threads.max(1)).max(EACH_MIN);
    // The first part is this thread's own.
    let mut parts = Vec::new();
    while things.len() > each {
        parts.push(things.split_off(things.len() - each));
    }
    let of = &of;
    thread::scope(|scope| {
        let others: Vec<_> = (parts.into_iter().rev())
            .map(|part| scope.spawn(move || part.into_iter().map(of).collect::<Vec<R>>()))
            .collect();
        let mut all: Vec<R> = things.into_iter().map(of).collect();
        for other in others {
            match other.join() {
                Ok(part) => all.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_stays_however_many_threads_there_are() {
        for (threads, n) in [
            (0, 0),
            (1, 1000),
            (2, 1),
            (2, 1000),
            (3, 1001),
            (4, 64 * 3 + 1),
        ] {
            let things: Vec<usize> = (0..n).collect();
            let made = map_on(threads, things.clone(), |n| n * 2);
            let expected: Vec<usize> = things.into_iter().map(|n| n * 2).collect();
            assert_eq!(made, expected, "{threads} threads, {n} things");
        }
    }
}
