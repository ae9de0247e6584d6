"""What drivers do in zero-copy mode that the kernel has no way to tell."""

from typing import Final

# Bytes in which a NIC is told how much room a frame has, rounded down; what is longer arrives as
# two packets (igb, igc: no look at the end-of-packet bit) or is dropped (ixgbe on 82599).
# Sources: igb_setup_srrctl, igc_configure_rx_ring, ixgbe_configure_srrctl.
_ROOM_UNITS: Final = {"igb": 1024, "igc": 1024, "ixgbe": 1024}
_USUAL_UNIT: Final = 128  # i40e, ice; xp_assign_dev takes this one for all

# With fewer frames than slots of its RX ring this driver looks at descriptors of the last round
# again: packets that came before, or their lengths with other bytes (seen on Linux 7.2).
NEEDS_A_FULL_RING: Final = ("igb",)

# This driver drops what a program redirects into it from a queue bound in zero-copy mode: such
# packets have no headroom (xdp_convert_zc_to_xdp_frame), and it needs some for a header of its own.
# Only its counter tx_xdp_tx_drops tells (seen on Linux 7.2).
DROPS_REDIRECTED_IN_ZERO_COPY: Final = ("virtio_net",)


def room_in_zero_copy(driver: str, room: int) -> int:
    """Return how much of a frame's ``room`` the NIC uses, in bytes.

    >>> room_in_zero_copy("igb", 1792), room_in_zero_copy("i40e", 1792)
    (1024, 1792)
    """
    return room - room % _ROOM_UNITS.get(driver, _USUAL_UNIT)
