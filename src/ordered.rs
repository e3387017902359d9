//! Work in parallel whose results come out in the order in which it went in.
//!
//! One sender, some workers, one receiver. At most `window` items are between them, so that a
//! slow end holds up the fast ones instead of memory filling up.

use std::thread::Scope;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::error::{Error, Result};

/// Where work goes in.
pub struct Input<I, O> {
    work: Sender<(I, Sender<O>)>,
    order: Sender<Receiver<O>>,
}

/// Where results come out.
pub struct Output<O> {
    order: Receiver<Receiver<O>>,
}

/// Starts the `workers`, one thread each. They end when the input is dropped.
pub fn ordered<'scope, I, O, W>(
    scope: &'scope Scope<'scope, '_>,
    workers: Vec<W>,
    window: usize,
) -> (Input<I, O>, Output<O>)
where
    I: Send + 'scope,
    O: Send + 'scope,
    W: FnMut(I) -> O + Send + 'scope,
{
    let (work, incoming) = bounded::<(I, Sender<O>)>(window);
    for mut worker in workers {
        let incoming = incoming.clone();
        scope.spawn(move || {
            for (item, answer) in incoming {
                // The receiver is gone when the operation has failed elsewhere.
                let _ = answer.send(worker(item));
            }
        });
    }
    let (order, results) = bounded(window);
    (Input { work, order }, Output { order: results })
}

impl<I, O> Input<I, O> {
    /// Hands in an item; waits while the window is full. False when nobody wants results any more.
    #[must_use]
    pub fn send(&self, item: I) -> bool {
        let (answer, result) = bounded(1);
        self.order.send(result).is_ok() && self.work.send((item, answer)).is_ok()
    }
}

impl<O> Output<O> {
    /// The next result, in the order of the items; `None` after the last.
    pub fn next(&self) -> Option<Result<O>> {
        let result = self.order.recv().ok()?;
        Some(result.recv().map_err(|_| Error::Internal("a worker ended early")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_their_order() {
        std::thread::scope(|scope| {
            let worker = |n: u64| {
                // Uneven work, so that workers overtake each other.
                (0..n % 7 * 1000).fold(n, |a, b| std::hint::black_box(a + b - b))
            };
            let (input, output) = ordered(scope, vec![worker; 3], 8);
            let sender = scope.spawn(move || (0..1000).all(|n| input.send(n)));
            let results: Vec<u64> = std::iter::from_fn(|| output.next()).map(Result::unwrap).collect();
            assert_eq!(results, (0..1000).collect::<Vec<_>>());
            assert!(sender.join().unwrap());
        });
    }

    #[test]
    fn a_receiver_that_leaves_stops_the_sender() {
        std::thread::scope(|scope| {
            let (input, output) = ordered(scope, vec![|n: u32| n], 2);
            let sender = scope.spawn(move || (0..).take_while(|n| input.send(*n)).count());
            assert!(output.next().is_some());
            drop(output);
            assert!(sender.join().unwrap() < 10);
        });
    }
}
