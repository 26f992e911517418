//! The two dicts of a call.

use crate::errors::{Failure, Result};
use crate::tensor::{Place, TensorView};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyDictMethods};

/// A dict whose keys are taken one by one, and none left.
pub(crate) struct Arguments<'a, 'py> {
    what: &'static str,
    dict: &'a Bound<'py, PyDict>,
    known: Vec<&'static str>,
    /// Where the first tensor was, and its name.
    place: Option<(Place, &'static str)>,
    /// Every tensor that was taken.
    views: Vec<TensorView>,
}

impl<'a, 'py> Arguments<'a, 'py> {
    /// `what`: for messages, such as `inputs`.
    pub(crate) fn new(what: &'static str, dict: &'a Bound<'py, PyDict>) -> Self {
        Self {
            what,
            dict,
            known: Vec::with_capacity(24),
            place: None,
            views: Vec::with_capacity(16),
        }
    }

    /// On the device of the tensors of `inputs`.
    pub(crate) fn beside(mut self, inputs: &Self) -> Self {
        self.place = inputs.place;
        self
    }

    fn take(&mut self, name: &'static str) -> Result<Option<Bound<'py, PyAny>>> {
        self.known.push(name);
        Ok(self.dict.get_item(name)?.filter(|value| !value.is_none()))
    }

    /// A tensor that may be absent.
    pub(crate) fn tensor(&mut self, name: &'static str) -> Result<Option<TensorView>> {
        let Some(object) = self.take(name)? else {
            return Ok(None);
        };
        let view = TensorView::of(name, &object)?;
        let (place, first) = *self.place.get_or_insert((view.place, name));
        if view.place != place {
            let expected = format!("a tensor on {place} as {first}");
            return Err(Failure::value(name, expected, view.place));
        }
        self.views.push(view.clone());
        Ok(Some(view))
    }

    /// A tensor that must be there.
    pub(crate) fn needed(&mut self, name: &'static str, what: &str) -> Result<TensorView> {
        self.tensor(name)?
            .ok_or_else(|| qae::Error::missing(name, what).into())
    }

    /// A count that may be absent.
    pub(crate) fn count(&mut self, name: &'static str) -> Result<Option<usize>> {
        let Some(value) = self.take(name)? else {
            return Ok(None);
        };
        match value.extract::<i64>() {
            Ok(count) => match usize::try_from(count) {
                Ok(count) => Ok(Some(count)),
                Err(_) => Err(Failure::value(name, "an int, at least 0", count)),
            },
            Err(_) => Err(Failure::of_type(name, "an int", type_of(&value))),
        }
    }

    /// A count that must be there.
    pub(crate) fn needed_count(&mut self, name: &'static str) -> Result<usize> {
        self.count(name)?
            .ok_or_else(|| qae::Error::missing(name, "an int").into())
    }

    /// A number that may be absent.
    pub(crate) fn number(&mut self, name: &'static str) -> Result<Option<f64>> {
        let Some(value) = self.take(name)? else {
            return Ok(None);
        };
        let number = value.extract::<f64>().ok();
        let number = number.ok_or_else(|| Failure::of_type(name, "a number", type_of(&value)))?;
        Ok(Some(number))
    }

    /// Text that may be absent.
    pub(crate) fn text(&mut self, name: &'static str) -> Result<Option<String>> {
        let Some(value) = self.take(name)? else {
            return Ok(None);
        };
        let text = value.extract().ok();
        let text = text.ok_or_else(|| Failure::of_type(name, "a str", type_of(&value)))?;
        Ok(Some(text))
    }

    /// Whether a flag is there and true.
    pub(crate) fn flag(&mut self, name: &'static str) -> Result<bool> {
        let Some(value) = self.take(name)? else {
            return Ok(false);
        };
        let flag = value.extract().ok();
        flag.ok_or_else(|| Failure::of_type(name, "a bool", type_of(&value)))
    }

    /// Refuses keys that were not taken. The tensors that were.
    pub(crate) fn finish(self) -> Result<Vec<TensorView>> {
        for key in self.dict.keys() {
            let key = key.str()?;
            let key = key.to_cow()?;
            if !self.known.iter().any(|known| *known == key) {
                return Err(Failure::of_type(
                    self.what,
                    format!("keys among {}", self.known.join(", ")),
                    key,
                ));
            }
        }
        Ok(self.views)
    }
}

fn type_of(value: &Bound<'_, PyAny>) -> String {
    let name = value.get_type().name();
    name.map_or_else(|_| "another type".to_owned(), |name| name.to_string())
}

/// All tensors of a call.
pub(crate) struct Tensors {
    pub(crate) inputs: Vec<TensorView>,
    pub(crate) outputs: Vec<TensorView>,
}

impl Tensors {
    /// Those of two dicts, once nothing is left in them and no output shares a byte with another,
    /// nor with an input but the `in_place` one, whose name is the output's and then the input's.
    pub(crate) fn of(
        inputs: Arguments<'_, '_>,
        outputs: Arguments<'_, '_>,
        in_place: Option<(&str, &str)>,
    ) -> Result<Self> {
        let this = Self {
            inputs: inputs.finish()?,
            outputs: outputs.finish()?,
        };
        this.expect_apart(in_place)?;
        Ok(this)
    }

    fn expect_apart(&self, in_place: Option<(&str, &str)>) -> Result<()> {
        for (index, output) in self.outputs.iter().enumerate() {
            let others = self.inputs.iter().chain(&self.outputs[..index]);
            let is_allowed = |other: &&TensorView| in_place == Some((output.name, other.name));
            let shared = others
                .filter(|other| !is_allowed(other))
                .find(|other| output.overlaps(other));
            if let Some(other) = shared {
                return Err(Failure::value(
                    output.name,
                    format!("memory apart from {}", other.name),
                    "memory that both share",
                ));
            }
        }
        Ok(())
    }
}
