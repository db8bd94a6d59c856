//! Enums whose variants have a stable name.

/// Defines an enum of plain variants, each with the label that logs, metrics and the management API show for it. `ALL` lists the
/// variants in their order, so that a variant `as usize` is its index in `ALL`.
macro_rules! labelled_enum {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident { $($(#[$doc:meta])* $variant:ident => $label:literal,)+ }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        $vis enum $name { $($(#[$doc])* #[serde(rename = $label)] $variant,)+ }

        impl $name {
            /// Every variant, in order.
            $vis const ALL: [Self; [$($label),+].len()] = [$(Self::$variant),+];

            /// The stable name, for logs, metrics and the management API.
            $vis const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }
        }
    };
}

pub(crate) use labelled_enum;
