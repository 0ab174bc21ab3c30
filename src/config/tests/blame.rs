//! What an error of the configuration names, and what it does not.

use super::*;

#[test]
fn a_key_that_is_there_twice_is_named_and_no_value_is() {
    for (text, words) in [
        (
            "[nats]\nstream = 'A'\n[columns]\nid = 'a'\n[nats]\nsubject = 'hunter2.{id}'\n",
            "walrelay.toml:5: not TOML: duplicate key `nats`",
        ),
        (
            "[postgres]\npassword = 'hunter2'\npassword = 'hunter2'\n",
            "walrelay.toml:3: not TOML: duplicate key `password`",
        ),
        (
            "[[source.tables]]\nname = 'a'\ncolumns.id = 'hunter2'\ncolumns.id = 'no'\n",
            "walrelay.toml:4: not TOML: duplicate key `id`",
        ),
    ] {
        let error = Case::new(text).load().expect_err(text).to_string();
        assert!(error.contains(words), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

/// Without the subject that is wrong, nothing is said of the default one.
#[test]
fn a_default_is_not_blamed_for_the_value_that_it_stands_for() {
    let text = "[nats]\nsubject = 'outbox.{event_version}'\n[columns]\nevent_type = ''\nevent_version = ''\n";
    let error = Case::new(text).load().expect_err(text).to_string();
    assert!(error.contains("{event_version}"), "{error}");
    assert!(!error.contains("default"), "{error}");
    // By itself it is to blame.
    let text = "[columns]\nevent_type = ''\n";
    let error = Case::new(text).load().expect_err(text).to_string();
    assert!(
        error.contains("(default) must be without {event_type}"),
        "{error}"
    );
}
