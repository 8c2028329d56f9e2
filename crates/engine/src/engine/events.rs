//! The engine's calls about what happened.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use pinfold_types::api::{DaemonEvent, DaemonEventList, DaemonEventQuery, PAGE_ENTRIES_MAX};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Engine, Result};
use crate::caller::Caller;
use crate::core::Core;
use crate::error::EngineError;
use crate::store::EventFilter;

/// Shortest time between two looks of one follower: what happens at once is read at once.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Engine {
    /// Returns a page of what happened, oldest first: the caller's own, and for an admin all.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn events(
        &self,
        caller: &Caller,
        query: &DaemonEventQuery,
    ) -> Result<DaemonEventList> {
        self.core.check_open()?;
        Ok(self.core.store.events(filter(caller, query)).await?)
    }

    /// Follows what happens from a place on.
    pub fn follow_events(&self, caller: &Caller, query: &DaemonEventQuery) -> EventFollower {
        EventFollower {
            core: Arc::clone(&self.core),
            last: self.core.store.last_event(),
            filter: filter(caller, query),
            ready: VecDeque::new(),
            looked: None,
        }
    }
}

fn filter(caller: &Caller, query: &DaemonEventQuery) -> EventFilter {
    let limit = match query.limit {
        0 => PAGE_ENTRIES_MAX,
        limit => limit.min(PAGE_ENTRIES_MAX),
    };
    EventFilter {
        after: query.after,
        owner: (!caller.is_admin()).then(|| caller.principal.clone()),
        sandbox: query.sandbox.clone(),
        kinds: query.kinds.clone(),
        limit,
    }
}

/// What a follower is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Followed {
    /// The next event.
    Event(Box<DaemonEvent>),
    /// Events before this one are gone, and the follower has not seen them.
    Dropped {
        /// The oldest that is kept.
        first_kept: u64,
    },
}

/// Follows what happens.
#[derive(Debug)]
pub struct EventFollower {
    core: Arc<Core>,
    last: watch::Receiver<u64>,
    filter: EventFilter,
    ready: VecDeque<Followed>,
    looked: Option<Instant>,
}

impl EventFollower {
    /// Waits for the next event. Safe to cancel: none is lost.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] when events cannot be read or the engine ends.
    pub async fn next(&mut self) -> Result<Followed> {
        loop {
            if let Some(next) = self.ready.pop_front() {
                return Ok(next);
            }
            let closing = self.core.closing.clone();
            let behind = *self.last.borrow_and_update() > self.filter.after;
            if !behind {
                tokio::select! {
                    biased;
                    () = closing.cancelled() => return Err(EngineError::closing()),
                    heard = self.last.changed() => if heard.is_err() {
                        return Err(EngineError::closing());
                    },
                }
            }
            if let Some(looked) = self.looked {
                tokio::time::sleep_until(looked + LOOK_EVERY).await;
            }
            self.look().await?;
        }
    }

    /// Reads what there is behind the last that was read.
    async fn look(&mut self) -> Result<()> {
        // Whatever is numbered up to here is written by now.
        let written = *self.last.borrow_and_update();
        let page = self.core.store.events(self.filter.clone()).await?;
        self.looked = Some(Instant::now());
        // Who begins at the beginning has missed nothing that it asked for.
        if self.filter.after > 0 && page.first_kept > self.filter.after.saturating_add(1) {
            let first_kept = page.first_kept;
            self.ready.push_back(Followed::Dropped { first_kept });
        }
        let last = page.events.last().map(|event| event.id);
        self.filter.after = match (page.next, last) {
            (Some(next), _) => next,
            // Others' events are behind it too, up to what was written before the look.
            (None, last) => self.filter.after.max(last.unwrap_or(0)).max(written),
        };
        let events = page.events.into_iter().map(Box::new).map(Followed::Event);
        self.ready.extend(events);
        Ok(())
    }
}
