use qae::{Advantages, DType, ImportanceWeight, Tensor};

/// Importance weights that own their values.
#[derive(Debug, Clone)]
pub enum Weight {
    /// All 1.
    None,
    /// One for each slot.
    PerToken(Vec<f32>),
    /// One for each row.
    PerResponse(Vec<f32>),
}

/// Advantages that own their values.
#[derive(Debug, Clone)]
pub enum Advantage {
    /// One for each slot.
    PerToken(Vec<f32>),
    /// One for each row.
    PerResponse(Vec<f32>),
}

impl Weight {
    /// As a batch holds them.
    pub fn borrow(&self) -> Option<ImportanceWeight<'_>> {
        match self {
            Self::None => None,
            Self::PerToken(values) => Some(ImportanceWeight::PerToken(values)),
            Self::PerResponse(values) => Some(ImportanceWeight::PerResponse(values)),
        }
    }
}

impl Advantage {
    /// As a batch holds them.
    pub fn borrow(&self) -> Advantages<'_> {
        match self {
            Self::PerToken(values) => Advantages::PerToken(values),
            Self::PerResponse(values) => Advantages::PerResponse(values),
        }
    }
}

/// A tensor that owns its values.
#[derive(Debug)]
pub enum Owned {
    /// f64.
    F64(Vec<f64>),
    /// f32.
    F32(Vec<f32>),
    /// bf16.
    Bf16(Vec<half::bf16>),
    /// f16.
    F16(Vec<half::f16>),
}

impl Owned {
    /// `values` rounded to `dtype`.
    pub fn new(dtype: DType, values: &[f32]) -> Self {
        let each = values.iter().copied();
        match dtype {
            DType::F64 => Self::F64(each.map(f64::from).collect()),
            DType::F32 => Self::F32(values.to_vec()),
            DType::Bf16 => Self::Bf16(each.map(half::bf16::from_f32).collect()),
            DType::F16 => Self::F16(each.map(half::f16::from_f32).collect()),
        }
    }

    /// As a batch holds them.
    pub fn tensor(&self) -> Tensor<'_> {
        match self {
            Self::F64(values) => Tensor::F64(values),
            Self::F32(values) => Tensor::F32(values),
            Self::Bf16(values) => Tensor::Bf16(values),
            Self::F16(values) => Tensor::F16(values),
        }
    }

    /// The values that were rounded to, as f32.
    pub fn widened(&self) -> Vec<f32> {
        let tensor = self.tensor();
        (0..tensor.len()).map(|i| tensor.get(i) as f32).collect()
    }
}
