//! The book's pages about kinds are those that `trainer plugin doc` prints. `UPDATE=1 cargo test -p trainer-plugin-dev` writes them anew.

use std::path::Path;

use trainer_plugin_dev::contract::{Contract, markdown};

#[test]
fn the_books_pages_are_the_contract() {
    for contract in Contract::all() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../docs/src/kinds/{}.md", contract.page()));
        let text = markdown(contract).unwrap();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&page, &text).unwrap();
        }
        let found = std::fs::read_to_string(&page).unwrap_or_default();
        let (kind, version) = (contract.kind, contract.version);
        assert!(found == text, "{} is not what `trainer plugin doc {kind}@{version}` prints: run this test with UPDATE=1", page.display());
    }
}
