//! A fixed amount of work for `scripts/instructions.sh`, which counts its instructions under callgrind.
//!
//! In: how many turns of 400 events, 10 a transaction. Out: the bytes of frames that they gave.

mod input;

fn main() {
    let turns = std::env::args().find_map(|argument| argument.parse::<u64>().ok());
    let mut lane = input::Lane1::new();
    let rows: Vec<_> = (0..10).map(input::insert).collect();
    let bytes: usize = (0..turns.unwrap_or(10)).map(|_| lane.turn(40, &rows)).sum();
    println!("{bytes} bytes");
}
