"""Connected groups: found through others, numbered by their first members."""

import numpy as np

from dataset.connected_groups import connected_groups


def test_members_are_connected_through_others_and_groups_are_numbered_by_their_first_members() -> None:
    assert connected_groups(7, np.array([(5, 1), (2, 5), (6, 4)])).tolist() == [0, 1, 1, 2, 3, 1, 3]


def test_without_pairs_every_member_is_a_group_of_its_own() -> None:
    assert connected_groups(3, np.empty((0, 2), dtype=np.int64)).tolist() == [0, 1, 2]


def test_a_member_that_is_paired_with_itself_is_not_connected_with_others() -> None:
    assert connected_groups(2, np.array([(1, 1)])).tolist() == [0, 1]
