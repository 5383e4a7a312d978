# SPDX-License-Identifier: Apache-2.0
"""What each op takes and returns, one module a family: NamedTuples that ops and backends share.

From a signature follow the op's torch schema, what is saved for backward, and where each gradient goes
(``fastfer._signature``). Nothing here computes anything; backends import these classes, and never ``fastfer.ops``.
"""
