//! Puts a sandbox's root filesystem together, inside its own mount namespace.
