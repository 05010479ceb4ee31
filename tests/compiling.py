"""How tests compile: quickly, since it takes most of their time, or as users do."""

import importlib.metadata

_QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
AS_USERS_DO = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
# The older way to emit code compiles four times as fast, and one module instead of many
# small ones takes a fifth less again; later releases lack the first, and XLA ends a
# process that asks for a flag it does not know.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _QUICK["xla_cpu_use_fusion_emitters"] = False
    _QUICK["xla_cpu_parallel_codegen_split_count"] = 1
    AS_USERS_DO["xla_cpu_use_fusion_emitters"] = True

QUICK_FLAGS = " ".join(
    f"--{name}={str(value).lower()}" for name, value in _QUICK.items()
)
