"""The data path that a configuration asks for."""

from l2fwd.config import ForwardConfig
from l2fwd.datapath import DataPath, Notify


def make_path(config: ForwardConfig, notify: Notify) -> DataPath:
    """Return the data path of ``config``; ``notify`` gets one dict per event.

    Imported here, as the others take a quarter of the time of a start.

    Raises
    ------
    ConfigError
        If a link, a queue or the rules do not fit.
    """
    if config.routed and config.data_path == "redirect":
        from l2fwd.datapath.kernel_fib import KernelFibPath

        return KernelFibPath(config, notify)
    if config.routed:
        from l2fwd.datapath.routed import RoutedPath

        return RoutedPath(config, notify)
    if config.data_path == "redirect":
        from l2fwd.datapath.redirect import RedirectPath

        return RedirectPath(config, notify)
    if config.uses_rules:
        from l2fwd.datapath.ruled import RuledPath

        return RuledPath(config, notify)
    from l2fwd.datapath.afxdp import AfxdpPath

    return AfxdpPath(config, notify)
