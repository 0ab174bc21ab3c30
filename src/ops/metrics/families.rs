//! What is measured, before it is written in anybody's format.
//!
//! In: families of samples. Out: the same as values. Guarantee: each family once, in the order in which they were begun; a family
//! that is begun again goes on where it was.

/// What a family counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Rises only; the name ends in `_total`.
    Counter,
    /// Any number.
    Gauge,
    /// How many were below which bound.
    Histogram,
}

/// A value as it is: counts and LSNs are whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Number {
    /// Counts, bytes, LSNs.
    Whole(u64),
    /// What may be below zero.
    Signed(i64),
    /// Seconds.
    Real(f64),
}

impl From<u64> for Number {
    fn from(value: u64) -> Self {
        Number::Whole(value)
    }
}

impl From<&u64> for Number {
    fn from(value: &u64) -> Self {
        Number::Whole(*value)
    }
}

impl From<i64> for Number {
    fn from(value: i64) -> Self {
        Number::Signed(value)
    }
}

impl From<u8> for Number {
    fn from(value: u8) -> Self {
        Number::Whole(value.into())
    }
}

impl From<usize> for Number {
    fn from(value: usize) -> Self {
        Number::Whole(value as u64)
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Number::Real(value)
    }
}

/// A sample's value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// Of a counter or a gauge.
    Number(Number),
    /// Of a histogram.
    Histogram {
        /// Upper bounds.
        bounds: Vec<f64>,
        /// How many at or below each bound and above the one before, the last of them above all.
        counts: Vec<u64>,
        /// Of all values.
        sum: f64,
    },
}

/// A value and the labels that it has.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    /// Names and values.
    pub(crate) labels: Vec<(String, String)>,
    /// The value.
    pub(crate) value: Value,
}

/// A metric with its samples.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Family {
    /// With its unit and, of a counter, `_total`.
    pub(crate) name: &'static str,
    /// What it is, in words.
    pub(crate) help: &'static str,
    /// What it counts.
    pub(crate) kind: Kind,
    /// One for each set of labels.
    pub(crate) samples: Vec<Sample>,
}

/// Families that are being gathered.
#[derive(Debug, Default)]
pub(super) struct Families {
    /// Labels of every sample from now on.
    common: Vec<(String, String)>,
    families: Vec<Family>,
    /// Index of the one whose samples follow.
    current: usize,
}

impl Families {
    /// Labels of every sample from now on.
    pub(super) fn label_all<'l>(&mut self, labels: impl IntoIterator<Item = (&'l str, &'l str)>) {
        self.common = owned(labels);
    }

    /// Begins a family, or goes on with it; its samples follow.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &'static str) {
        let known = (self.families.iter()).position(|family| family.name == name);
        self.current = known.unwrap_or_else(|| {
            self.families.push(Family {
                name,
                help,
                kind,
                samples: Vec::new(),
            });
            self.families.len() - 1
        });
    }

    /// A family of one sample.
    pub(super) fn one(
        &mut self,
        name: &'static str,
        kind: Kind,
        help: &'static str,
        value: impl Into<Number>,
    ) {
        self.family(name, kind, help);
        self.sample(&[], value);
    }

    /// A gauge that is absent where nothing is known.
    pub(super) fn known(
        &mut self,
        name: &'static str,
        help: &'static str,
        value: Option<impl Into<Number>>,
    ) {
        if let Some(value) = value {
            self.one(name, Kind::Gauge, help, value);
        }
    }

    /// A sample of the family.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Into<Number>) {
        self.add(labels, Value::Number(value.into()));
    }

    /// A histogram: how many at or below each bound and above the one before, the last of them above all; and their sum.
    pub(super) fn histogram(&mut self, bounds: &[f64], counts: &[u64], sum: f64) {
        let value = Value::Histogram {
            bounds: bounds.to_vec(),
            counts: counts.to_vec(),
            sum,
        };
        self.add(&[], value);
    }

    fn add(&mut self, labels: &[(&str, &str)], value: Value) {
        let Some(family) = self.families.get_mut(self.current) else {
            return;
        };
        let mut all = self.common.clone();
        all.extend(owned(labels.iter().copied()));
        family.samples.push(Sample { labels: all, value });
    }

    pub(super) fn finish(self) -> Vec<Family> {
        self.families
    }
}

fn owned<'l>(labels: impl IntoIterator<Item = (&'l str, &'l str)>) -> Vec<(String, String)> {
    let labels = labels.into_iter();
    labels
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
