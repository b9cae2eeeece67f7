//! The book's pages about kinds are those that `trainer plugin doc` prints. `UPDATE=1 cargo test -p trainer-plugin-dev` writes them anew.

use std::path::Path;

use trainer_plugin_dev::{contract, scaffold};
use trainer_plugin_host::Kind;

#[test]
fn the_books_pages_are_the_contract() {
    for kind in Kind::ALL {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../docs/src/kinds/{}.md", scaffold::kind_name(kind)));
        let text = contract::markdown(kind).unwrap();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&page, &text).unwrap();
        }
        let found = std::fs::read_to_string(&page).unwrap_or_default();
        assert!(found == text, "{} is not what `trainer plugin doc {kind}` prints: run this test with UPDATE=1", page.display());
    }
}
