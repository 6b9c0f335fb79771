//! Reports as text for people: bounded, with units and what was left out.
