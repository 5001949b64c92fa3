//! How many of the workers wait for the kernel's next request: as few as keep up.
//!
//! The kernel gives requests to the workers that wait in turn. Where one would do, that wakes another core for each
//! request: 20,000 first reads of small files took 800 ms with two workers or more, 485 ms with one (two cores). But one
//! would hold up everybody while it waits for the disk. So a worker that has answered while another one waits stays
//! behind, and whenever nobody has waited for two looks, a millisecond apart, one of those goes back: the worker whose
//! turn it is reads something long, or comes to no rest.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// Between two looks. A request that comes while the only waiting worker is busy waits for two of them at most; shorter
/// ones find workers at work that are about to be done.
const LOOK: Duration = Duration::from_millis(1);
/// Nobody looks any more after so many without a request.
const QUIET: u32 = 100;

/// The workers of a session.
#[derive(Debug)]
pub(crate) struct Crew {
    state: Mutex<State>,
    behind: Condvar,
    look: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Workers that wait for a request, or are on their way to it.
    waiting: usize,
    /// Workers that stay behind.
    behind: usize,
    /// How many of those are to go.
    called: usize,
    /// Requests so far.
    requests: u64,
    /// Whether somebody looks.
    looking: bool,
    closed: bool,
}

impl Crew {
    /// A crew whose workers all wait.
    pub(crate) fn new(workers: usize) -> std::io::Result<Arc<Self>> {
        let state = Mutex::new(State { waiting: workers, ..State::default() });
        let crew = Arc::new(Self { state, behind: Condvar::new(), look: Condvar::new() });
        let looks = crew.clone();
        thread::Builder::new().name("silk-fuse-crew".into()).spawn(move || looks.look_after())?;
        Ok(crew)
    }

    /// Answers a request: to be called by a worker that has one.
    pub(crate) fn answer(&self, request: impl FnOnce()) {
        {
            let mut state = self.lock();
            state.waiting = state.waiting.saturating_sub(1);
            state.requests += 1;
            if !state.looking {
                state.looking = true;
                self.look.notify_one();
            }
        }
        request();
        let mut state = self.lock();
        if state.waiting > 0 && !state.closed {
            state.behind += 1;
            let stay = |state: &mut State| state.called == 0 && !state.closed;
            state = self.behind.wait_while(state, stay).unwrap_or_else(PoisonError::into_inner);
            state.behind -= 1;
            state.called = state.called.saturating_sub(1);
        }
        state.waiting += 1;
    }

    /// Sends all workers to the kernel, to hear that the session has ended.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.behind.notify_all();
        self.look.notify_all();
    }

    /// Calls workers until the crew is closed.
    fn look_after(&self) {
        let mut state = self.lock();
        loop {
            let idle = |state: &mut State| !state.looking && !state.closed;
            state = self.look.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
            let (mut alone, mut quiet, mut seen) = (0, 0, state.requests);
            while quiet < QUIET {
                let open = |state: &mut State| !state.closed;
                let waited = self.look.wait_timeout_while(state, LOOK, open);
                (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
                if state.closed {
                    return;
                }
                alone = if state.waiting == 0 { alone + 1 } else { 0 };
                quiet = if state.waiting > 0 && state.requests == seen { quiet + 1 } else { 0 };
                seen = state.requests;
                if alone >= 2 && state.behind > state.called {
                    state.called += 1;
                    alone = 0;
                    self.behind.notify_one();
                }
            }
            state.looking = false;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
