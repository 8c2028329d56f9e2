//! What the engine holds of an exec at most, as a sum of the limits of its parts.

use pinfold_driver::agent::MESSAGE_BYTES_MAX;

use crate::exec::BATCH_BYTES;
use crate::journal::{CHUNK_BYTES, CONTENT_BYTES_MAX, TAIL_BYTES_MAX};

/// Most memory that a daemon gains from one exec that writes without end and one reader that has
/// stopped, in bytes:
/// - a message of the agent as it came and as it was decoded;
/// - a batch of events that goes to the disk, its last event over the limit, and both again as
///   records;
/// - the journal's tail, which holds at least one event;
/// - what the reader took from a file, as records and as events;
/// - one event on its way to the reader: as an event, as text or a frame, and in the buffers of the
///   socket and of the agent's connection.
pub const FLOOD_BYTES_MAX: usize = 2 * MESSAGE_BYTES_MAX
    + 2 * (BATCH_BYTES + CONTENT_BYTES_MAX)
    + TAIL_BYTES_MAX
    + CONTENT_BYTES_MAX
    + 2 * CHUNK_BYTES
    + SENDING_BYTES_MAX;

/// Times that one event may be there on its way.
const SENDING_BYTES_MAX: usize = 6 * CONTENT_BYTES_MAX;
