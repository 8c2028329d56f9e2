//! Attacks that are made from outside a sandbox, by way of the product.

mod act;
mod agent;
mod archive;
mod copy;
mod files;
mod floods;
mod image;
mod liar;
mod product;
mod published;

use std::io;

pub(super) use self::act::act;
use self::product::Product;
use super::{Attempt, Facts, Found};

/// Seconds after which an attack from outside has failed: some run the product often.
pub(super) const SECONDS_MAX: u32 = 170;

/// Returns what each name stands for.
pub(super) fn attempts() -> impl Iterator<Item = &'static (&'static str, Attempt)> {
    [
        copy::ATTEMPTS,
        files::ATTEMPTS,
        floods::ATTEMPTS,
        image::ATTEMPTS,
        liar::ATTEMPTS,
        published::ATTEMPTS,
    ]
    .into_iter()
    .flatten()
}

/// Makes an attack with the product; what could not be set up shows nothing.
fn with(facts: &Facts, attack: impl FnOnce(&Product) -> io::Result<Found>) -> Found {
    let made = Product::of(facts).and_then(|product| attack(&product));
    made.unwrap_or_else(|error| {
        Found::NotExpressible(format!("{}: {error}", pinfold_attack::NOT_MADE))
    })
}
