mod damage;
mod errors;
mod forgetful;
mod full;
mod load;
mod mended;
mod mount;
mod pages;
mod power;
mod run;
mod taken;

use crate::{Fault, block_on};

pub(crate) const FAULTS: &[Fault] = &[
    ("power loss", |scale| block_on(power::loss(scale))),
    ("power loss after fsyncs that failed", |scale| {
        block_on(power::after_failed_syncs(scale))
    }),
    ("power loss after fsync failed for a new buffer", |scale| {
        block_on(power::for_new_buffer(scale))
    }),
    ("power loss on a full disk", |scale| {
        block_on(power::on_full_disk(scale))
    }),
    ("power loss while a buffer is mended", |scale| {
        block_on(mended::power_loss(scale))
    }),
    ("EIO on write", |scale| block_on(errors::on_write(scale))),
    ("EIO on fsync", |scale| block_on(errors::on_sync(scale))),
    ("EIO on read", |scale| block_on(errors::on_read(scale))),
    ("a bad sector under one event", |scale| {
        block_on(errors::bad_sector(scale))
    }),
    ("read-only disk", |scale| block_on(errors::read_only(scale))),
    ("read-only disk at the start", |scale| {
        block_on(errors::read_only_at_start(scale))
    }),
    ("full disk at the start", |scale| {
        block_on(full::at_start(scale))
    }),
    ("full disk at the start, no reserve", |scale| {
        block_on(full::without_reserve(scale))
    }),
    ("full disk under load", |scale| {
        block_on(full::under_load(scale))
    }),
    ("buffer deleted", |scale| block_on(taken::deleted(scale))),
    ("buffer replaced by an older copy", |scale| {
        block_on(taken::replaced(scale))
    }),
    ("-wal deleted", |scale| block_on(taken::log_deleted(scale))),
    ("buffer taken away, kill -9 after the next 202", |scale| {
        block_on(taken::killed_at_next_answer(scale))
    }),
    ("damaged: header", |scale| block_on(damage::header(scale))),
    ("damaged: a page of events or of an index", |scale| {
        block_on(damage::event_page(scale))
    }),
    ("damaged: a page of bodies", |scale| {
        block_on(damage::payload_page(scale))
    }),
    ("damaged: half of the file", |scale| {
        block_on(damage::half(scale))
    }),
    ("damaged: a page of the -wal", |scale| {
        block_on(damage::log_page(scale))
    }),
    ("damaged: the end of the -wal", |scale| {
        block_on(damage::log(scale))
    }),
    ("a file of another program", |scale| {
        block_on(damage::foreign(scale))
    }),
];
