//! Pagevisor host side.
