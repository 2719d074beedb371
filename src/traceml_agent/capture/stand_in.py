"""StandIn: an object in all but its exact type; copied and pickled as what it stands for."""

import copy
from typing import Any

import wrapt

_Proxy: Any = wrapt.ObjectProxy  # with type parameters in some versions only


class StandIn(_Proxy):  # type: ignore[misc]  # untyped
    """Attributes of its own begin with `_self_`: so wrapt keeps them apart."""

    def __copy__(self) -> Any:
        return copy.copy(self.__wrapped__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.__wrapped__, memo)

    def __reduce__(self) -> Any:
        return self.__wrapped__.__reduce__()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__wrapped__.__reduce_ex__(protocol)
