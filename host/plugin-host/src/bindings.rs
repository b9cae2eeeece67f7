//! The WIT packages as Rust, made by wasmtime's `bindgen!` from `wit/`. One module per kind, of its newest version, and one for each older version that the
//! host still runs; the types that kinds share exist once.

/// `trainer:conversation/types` and `trainer:host/log`.
/// See the WIT package of the kind.
pub mod shared {
    wasmtime::component::bindgen!({
        path: ["../../wit/conversation/0.1.0", "../../wit/host/0.1.0"],
        inline: "
            package trainer:bindings;
            world shared {
                import trainer:conversation/types@0.1.0;
                import trainer:host/log@0.1.0;
            }
        ",
        additional_derives: [PartialEq, serde::Serialize, serde::Deserialize],
    });
}

/// Requests and secrets (`wit/http`), which a plugin's world imports beside that of its kind.
pub mod http {
    wasmtime::component::bindgen!({
        path: "../../wit/http/0.1.0",
        world: "trainer:http/imports@0.1.0",
        additional_derives: [PartialEq, serde::Serialize, serde::Deserialize],
    });
}

/// See the WIT package of the kind.
pub mod formatter {
    wasmtime::component::bindgen!({
        path: ["../../wit/host/0.1.0", "../../wit/conversation/0.1.0", "../../wit/dataset-formatter/0.1.0"],
        world: "trainer:dataset-formatter/plugin@0.1.0",
        with: {
            "trainer:conversation/types@0.1.0": super::shared::trainer::conversation::types,
            "trainer:host/log@0.1.0": super::shared::trainer::host::log,
        },
        additional_derives: [PartialEq],
    });
}

/// See the WIT package of the kind.
pub mod template {
    wasmtime::component::bindgen!({
        path: ["../../wit/host/0.1.0", "../../wit/conversation/0.1.0", "../../wit/chat-template/0.1.0"],
        world: "trainer:chat-template/plugin@0.1.0",
        with: {
            "trainer:conversation/types@0.1.0": super::shared::trainer::conversation::types,
            "trainer:host/log@0.1.0": super::shared::trainer::host::log,
        },
        additional_derives: [PartialEq, serde::Serialize, serde::Deserialize],
    });
}

/// See the WIT package of the kind.
pub mod policy {
    wasmtime::component::bindgen!({
        path: ["../../wit/host/0.1.0", "../../wit/conversation/0.1.0", "../../wit/mixing-policy/0.1.0"],
        world: "trainer:mixing-policy/plugin@0.1.0",
        with: {
            "trainer:conversation/types@0.1.0": super::shared::trainer::conversation::types,
            "trainer:host/log@0.1.0": super::shared::trainer::host::log,
        },
        additional_derives: [PartialEq, serde::Serialize, serde::Deserialize],
    });
}

/// See the WIT package of the kind.
pub mod executor {
    wasmtime::component::bindgen!({
        path: ["../../wit/host/0.1.0", "../../wit/conversation/0.1.0", "../../wit/tool-executor/0.1.0"],
        world: "trainer:tool-executor/plugin@0.1.0",
        with: {
            "trainer:conversation/types@0.1.0": super::shared::trainer::conversation::types,
            "trainer:host/log@0.1.0": super::shared::trainer::host::log,
        },
        additional_derives: [PartialEq, serde::Serialize, serde::Deserialize],
    });
}

/// See the WIT package of the kind.
pub mod metric {
    wasmtime::component::bindgen!({
        path: ["../../wit/host/0.1.0", "../../wit/conversation/0.1.0", "../../wit/eval-metric/0.2.0"],
        world: "trainer:eval-metric/plugin@0.2.0",
        with: {
            "trainer:conversation/types@0.1.0": super::shared::trainer::conversation::types,
            "trainer:host/log@0.1.0": super::shared::trainer::host::log,
        },
        additional_derives: [PartialEq, serde::Serialize, serde::Deserialize],
    });
}

/// The first version of `eval-metric`, which the host adapts to the newest.
pub mod metric_0_1 {
    wasmtime::component::bindgen!({
        path: ["../../wit/host/0.1.0", "../../wit/conversation/0.1.0", "../../wit/eval-metric/0.1.0"],
        world: "trainer:eval-metric/plugin@0.1.0",
        with: {
            "trainer:conversation/types@0.1.0": super::shared::trainer::conversation::types,
            "trainer:host/log@0.1.0": super::shared::trainer::host::log,
        },
        additional_derives: [PartialEq, serde::Serialize, serde::Deserialize],
    });
}
