"""The data path that a configuration asks for."""

from l2fwd.config import ForwardConfig
from l2fwd.datapath import DataPath, Notify
from l2fwd.datapath.afxdp import AfxdpPath
from l2fwd.datapath.kernel_fib import KernelFibPath
from l2fwd.datapath.redirect import RedirectPath
from l2fwd.datapath.routed import RoutedPath
from l2fwd.datapath.ruled import RuledPath


def make_path(config: ForwardConfig, notify: Notify) -> DataPath:
    """Return the data path of ``config``; ``notify`` gets one dict per event.

    Raises
    ------
    ConfigError
        If a link, a queue or the rules do not fit.
    """
    if config.routed:
        return (KernelFibPath if config.data_path == "redirect" else RoutedPath)(config, notify)
    if config.data_path == "redirect":
        return RedirectPath(config, notify)
    return RuledPath(config, notify) if config.uses_rules else AfxdpPath(config, notify)
