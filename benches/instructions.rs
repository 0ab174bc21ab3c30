//! A fixed amount of work for `scripts/instructions.sh`, which counts its instructions under callgrind.
//!
//! In: how many turns of 400 events, 10 a transaction; `debezium` for that preset's table. Out: the bytes of frames that they gave.

mod input;

fn main() {
    let mut turns = 10;
    let mut layout = input::DEFAULT;
    for argument in std::env::args().skip(1) {
        match (argument.as_str(), argument.parse()) {
            ("debezium", _) => layout = input::DEBEZIUM,
            (_, Ok(number)) => turns = number,
            // What cargo gives.
            _ => {}
        }
    }
    let mut lane = input::Lane1::new(layout);
    let rows: Vec<_> = (0..10)
        .map(|number| input::insert(layout, number))
        .collect();
    let bytes: usize = (0..turns).map(|_: u64| lane.turn(40, &rows)).sum();
    println!("{bytes} bytes");
}
