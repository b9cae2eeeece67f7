//! `plugin!`: the exports and the manifest of a component.

/// Makes a component of implementations of the SDK's traits.
///
/// - `name`: how recipes call the plugin, `[a-z0-9_]+`; the file is called `<name>.wasm`.
/// - `description`: one sentence. Plain characters: it goes into JSON as it stands.
/// - `settings_schema`: optional, a JSON Schema object as text (a literal or `include_str!`); without it the plugin takes no settings.
///   Where a component has several kinds, each gets the same settings.
/// - `deterministic`: optional, `false` for tools whose answers are not decided by their arguments and the session alone.
/// - `needs`: optional, what the user has to grant, such as `["http: https://api.example.com", "secret: API_KEY"]`: see [`crate::http`]
///   and [`crate::secrets`]. Only a plugin of nothing but tools may have needs.
/// - one or several of `formatter`, `template`, `policy`, `executor`, `metric`, `metric_0_2`, in this order: types that implement the traits;
///   `metric_0_2`, with the feature of this name, is for `trainer_plugin_sdk::metric_0_2::Metric`.
///
/// The version is that of the crate. In a project whose `plugin.toml` describes the plugin, `name` to `needs` are left out; what uses
/// [`crate::http`] or [`crate::secrets`] then begins with `imports: http,`.
///
/// To be used once, in the root of a crate with `crate-type = ["cdylib"]`.
#[macro_export]
macro_rules! plugin {
    (
        name: $name:literal,
        description: $description:literal,
        $(settings_schema: $schema:expr,)?
        $(deterministic: $deterministic:literal,)?
        $(needs: [$($need:literal),+ $(,)?],)?
        $(formatter: $formatter:ty,)?
        $(template: $template:ty,)?
        $(policy: $policy:ty,)?
        $(executor: $executor:ty,)?
        $(metric: $metric:ty,)?
        $(metric_0_2: $metric_0_2:ty,)?
    ) => {
        $crate::plugin_manifest! {
            name: $name, description: $description, $(settings_schema: $schema,)? $(deterministic: $deterministic,)?
            $(needs: [$($need),+],)?
        }
        $crate::plugin! {
            $(formatter: $formatter,)? $(template: $template,)? $(policy: $policy,)? $(executor: $executor,)? $(metric: $metric,)?
            $(metric_0_2: $metric_0_2,)?
        }
    };
    (
        $(imports: $imports:ident,)?
        $(formatter: $formatter:ty,)?
        $(template: $template:ty,)?
        $(policy: $policy:ty,)?
        $(executor: $executor:ty,)?
        $(metric: $metric:ty,)?
        $(metric_0_2: $metric_0_2:ty,)?
    ) => {
        $($crate::__import! { $imports })?
        $($crate::__export! {
            $crate::adapter::FormatterExport<$formatter>, FORMATTER, "component-type:trainer:dataset-formatter", dataset_formatter, formatter,
            __export_trainer_dataset_formatter_formatter_0_1_0_cabi
        })?
        $($crate::__export! {
            $crate::adapter::TemplateExport<$template>, TEMPLATE, "component-type:trainer:chat-template", chat_template, template,
            __export_trainer_chat_template_template_0_1_0_cabi
        })?
        $($crate::__export! {
            $crate::adapter::PolicyExport<$policy>, POLICY, "component-type:trainer:mixing-policy", mixing_policy, policy,
            __export_trainer_mixing_policy_policy_0_1_0_cabi
        })?
        $($crate::__export! {
            $crate::adapter::ExecutorExport<$executor>, EXECUTOR, "component-type:trainer:tool-executor", tool_executor, executor,
            __export_trainer_tool_executor_executor_0_1_0_cabi
        })?
        $($crate::__export! {
            $crate::adapter::MetricExport<$metric>, METRIC, "component-type:trainer:eval-metric", eval_metric, metric,
            __export_trainer_eval_metric_metric_0_1_0_cabi
        })?
        $($crate::__export! {
            @ [$crate::bindings::metric_0_2]
            $crate::metric_0_2::MetricExport<$metric_0_2>, METRIC_0_2, "component-type:trainer:eval-metric:0.2.0", eval_metric, metric,
            __export_trainer_eval_metric_metric_0_2_0_cabi
        })?
    };
}

/// The manifest alone, for a plugin that exports an interface in a way of its own.
#[macro_export]
macro_rules! plugin_manifest {
    (
        name: $name:literal,
        description: $description:literal,
        $(settings_schema: $schema:expr,)?
        $(deterministic: $deterministic:literal,)?
        $(needs: [$first:literal $(, $need:literal)* $(,)?],)?
    ) => {
        const _: () = {
            const MANIFEST: &[&str] = &[
                concat!("{\"name\":", stringify!($name), ",\"version\":\"", env!("CARGO_PKG_VERSION"), "\",\"description\":"),
                concat!(stringify!($description), ",\"settings_schema\":"),
                $crate::__settings_schema!($($schema)?),
                $(concat!(",\"deterministic\":", stringify!($deterministic)),)?
                ",\"needs\":[",
                $(concat!(stringify!($first) $(, ",", stringify!($need))*),)?
                "]}",
            ];
            $(
                // Whoever has needs imports what they are for.
                const _: &str = $first;
                $crate::__import! { http }
            )?
            #[cfg(target_arch = "wasm32")]
            #[unsafe(link_section = "trainer:plugin")]
            #[used]
            static SECTION: [u8; $crate::internal::length(MANIFEST)] = $crate::internal::join(MANIFEST);
            #[cfg(not(target_arch = "wasm32"))]
            const _: &[&str] = MANIFEST;
        };
    };
}

/// The component type of imports beyond those of the kind.
#[doc(hidden)]
#[macro_export]
macro_rules! __import {
    (http) => {
        const _: () = {
            #[cfg(target_arch = "wasm32")]
            #[unsafe(link_section = "component-type:trainer:http")]
            #[used]
            static IMPORTS: [u8; $crate::bindings::component_type::HTTP.len()] =
                $crate::internal::array($crate::bindings::component_type::HTTP);
        };
    };
}

/// Exports a type that implements the generated `formatter::Guest` itself, without the SDK's trait.
#[doc(hidden)]
#[macro_export]
macro_rules! export_raw_formatter {
    ($export:ty) => {
        $crate::__export! {
            $export, FORMATTER, "component-type:trainer:dataset-formatter", dataset_formatter, formatter,
            __export_trainer_dataset_formatter_formatter_0_1_0_cabi
        }
    };
}

/// The schema of `plugin!`, or that of a plugin without settings.
#[doc(hidden)]
#[macro_export]
macro_rules! __settings_schema {
    () => {
        "{\"type\":\"object\",\"additionalProperties\":false}"
    };
    ($schema:expr) => {
        $schema
    };
}

/// The exports of one kind, and its component type for the step from module to component. Newer versions of a kind have bindings of their own.
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    (@ [$($bindings:tt)*] $export:ty, $type:ident, $section:literal, $package:ident, $interface:ident, $cabi:ident) => {
        const _: () = {
            type Export = $export;
            // The exports' names are none for a native linker; there, only their types are checked.
            #[cfg(not(target_arch = "wasm32"))]
            const _: fn() = || {
                fn check<T: $($bindings)*::exports::trainer::$package::$interface::Guest>() {}
                check::<Export>();
            };
            #[cfg(target_arch = "wasm32")]
            $($bindings)*::exports::trainer::$package::$interface::$cabi!(
                Export with_types_in $($bindings)*::exports::trainer::$package::$interface
            );
            #[cfg(target_arch = "wasm32")]
            #[unsafe(link_section = $section)]
            #[used]
            static SECTION: [u8; $crate::bindings::component_type::$type.len()] =
                $crate::internal::array($crate::bindings::component_type::$type);
        };
    };
    ($export:ty, $type:ident, $section:literal, $package:ident, $interface:ident, $cabi:ident) => {
        $crate::__export! { @ [$crate::bindings] $export, $type, $section, $package, $interface, $cabi }
    };
}
