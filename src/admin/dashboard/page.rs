//! The page, put together from the files of this folder. `build.rs` reads it here too, and compresses it.

/// The style sheet.
macro_rules! style {
    () => {
        include_str!("style.css")
    };
}

/// All texts in both languages, and the scripts, which share one scope. The last one starts the page.
macro_rules! script {
    () => {
        concat!(
            "\"use strict\";\nconst WORDS = ",
            include_str!("words.json"),
            ";\n",
            include_str!("base.js"),
            include_str!("said.js"),
            include_str!("gateway.js"),
            include_str!("totals.js"),
            include_str!("health.js"),
            include_str!("plots.js"),
            include_str!("table.js"),
            include_str!("detail.js"),
            include_str!("calls.js"),
            include_str!("servers.js"),
            include_str!("errors.js"),
            include_str!("log.js"),
            include_str!("actions.js"),
            include_str!("page.js"),
        )
    };
}

/// The page.
pub const HTML: &str = concat!(
    include_str!("head.html"),
    "<style>\n",
    style!(),
    "</style>\n</head>\n",
    include_str!("body.html"),
    "<script>\n",
    script!(),
    "</script>\n</body>\n</html>\n",
);
