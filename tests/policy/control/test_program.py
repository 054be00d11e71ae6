"""Functions of tensors as programs: the same results with less to do, or a clear refusal."""

import pytest
import torch

from policy.control.program import program_of, with_weights
from policy.control.recorder import RecordError

aten = torch.ops.aten


def names(program):
    return [getattr(target, "__name__", str(target)).split(".")[0] for target in program.operations]


def check(function, *inputs, others):
    """The program of a function on examples, after it was right on other inputs."""
    program = program_of(lambda *given: [function(*given)], inputs)
    for run in (program, program.quick()):
        (result,) = run(*others)
        with torch.no_grad():
            assert torch.equal(result, function(*others))
    return program


def test_what_does_not_depend_on_inputs_is_computed_once():
    weight = torch.randn(3, 3)
    program = check(
        lambda x: x @ (weight.sin() + torch.arange(3)) * x.new_full((3,), 2.0).cos(),
        torch.ones(2, 3),
        others=[torch.randn(2, 3)],
    )
    assert names(program) == ["mm", "mul"]
    assert program.n_constants == 2


def test_equal_operations_are_done_once():
    program = check(
        lambda x: (x + 1).sin() * (x + 1).sin() - (x + 1.0).cos(),
        torch.ones(3),
        others=[torch.randn(3)],
    )
    # 1 and 1.0 are added by two operations: a whole number keeps the type of others.
    assert names(program).count("sin") == 1
    assert names(program).count("add") == 2


def test_choices_whose_outcome_is_known_are_made():
    always, mixed = torch.tensor([True, True]), torch.tensor([True, False])

    def function(x):
        return torch.where(always, x + 1, x.sin()) + torch.where(mixed, x, 2 * x)

    program = check(function, torch.ones(2), others=[torch.randn(2)])
    assert names(program).count("where") == 1
    assert "sin" not in names(program)


def test_a_choice_of_what_is_written_to_later_keeps_what_it_held():
    always = torch.tensor([True, True])

    def function(x):
        made = torch.zeros(2)
        made += x
        taken = torch.where(always, made, -made)
        made += 1
        return taken

    check(function, torch.ones(2), others=[torch.randn(2)])


def test_a_choice_that_would_change_a_shape_is_kept():
    check(
        lambda x, y: torch.where(torch.tensor(True), x, y),
        torch.ones(1),
        torch.ones(3),
        others=[torch.randn(1), torch.randn(3)],
    )


def test_writing_to_what_was_made_within_is_kept_in_order():
    def function(x):
        made = torch.zeros(4)
        view = made[1:3]
        before = view + 1
        view += x
        made[0] = x[0]
        return torch.cat([made, before, view + 1])

    check(function, torch.ones(2), others=[torch.tensor([3.0, 4.0])])


def test_writing_to_what_was_there_before_is_refused():
    kept = torch.zeros(2)
    with pytest.raises(RecordError, match=r"add_.* writes to a tensor that the function did not"):
        program_of(lambda x: [kept.add_(x)], [torch.ones(2)])


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x if x.sum() > 0 else -x, "hands out a value, which can be branched on"),
        (lambda x: x * x.max().item(), "hands out a value"),
        (lambda x: x[x > 0], "depends on a value"),
        (lambda x: x.nonzero(), "depends on a value"),
        (lambda x: x + torch.randn(2), "draws noise of its own"),
        (lambda x: torch.dropout(x, 0.5, train=True), "draws noise of its own"),
    ],
)
def test_what_depends_on_more_than_shapes_is_refused(function, said):
    with pytest.raises(RecordError, match=said):
        program_of(lambda x: [function(x)], [torch.ones(2)])


def test_indices_by_numbers_and_values_of_constants_are_fine():
    table, limit = torch.randn(5, 2), torch.tensor(2.0)
    check(
        lambda x, i: table[i] * (x if limit > 1 else -x),
        torch.ones(2),
        torch.tensor([0, 1]),
        others=[torch.randn(2), torch.tensor([4, 2])],
    )


def test_gradients_within_are_recorded():
    weight = torch.randn(3, 3)

    def function(x):
        with torch.enable_grad():
            given = x.detach().requires_grad_()
            (pull,) = torch.autograd.grad((given @ weight).tanh().sum(), given)
        return pull

    check(function, torch.ones(2, 3), others=[torch.randn(2, 3)])


def test_results_that_are_inputs_or_constants_are_handed_out():
    constant = torch.arange(3.0)
    program = program_of(lambda x, y: [y, constant, x], [torch.ones(1), torch.ones(2)])
    y, c, x = program.quick()(torch.zeros(1), torch.full((2,), 5.0))
    assert y.tolist() == [5, 5]
    assert c.tolist() == [0, 1, 2]
    assert x.tolist() == [0]


def test_operations_of_several_results_are_followed():
    def function(x):
        first, second = x.split([1, 2], dim=1)
        values, index = second.max(dim=1)
        return first[:, 0] * values + index

    check(function, torch.ones(2, 3), others=[torch.randn(2, 3)])


def test_inputs_are_not_held_and_not_written_to():
    given = torch.ones(2)
    program = program_of(lambda x: [x.add_(1)], [given])
    assert given.tolist() == [1, 1]
    assert program.n_constants == 0


def test_operators_can_be_replaced_by_functions():
    program = program_of(lambda x: [x.erf()], [torch.ones(2)])
    quick = program.quick({aten.erf.default: lambda x: x + 40})
    assert quick(torch.zeros(2))[0].tolist() == [40, 40]
    assert names(program) == ["erf"]  # The program itself stays.


def test_weights_of_products_are_held_in_another_dtype():
    layer = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.SiLU(), torch.nn.Linear(16, 4)
    ).requires_grad_(False)
    x = torch.randn(3, 8)
    program = program_of(lambda x: [layer(x)], [x])
    narrow = with_weights(program, torch.bfloat16)
    assert sorted({str(c.dtype) for c in program.constants}) == ["torch.float32"]
    assert {c.dtype for c in narrow.constants} == {torch.bfloat16}
    (result,), (expected,) = narrow(x), program(x)
    assert result.dtype == torch.float32
    assert not torch.equal(result, expected)
    # Two layers, each rounded to 8 bits: relative errors of about 2 * 2^-8 of sums of about 1.
    torch.testing.assert_close(result, expected, rtol=0.02, atol=0.02)


def test_a_transposed_weight_takes_no_memory_of_its_own():
    weight = torch.randn(5, 4)
    program = program_of(lambda x: [x @ weight.t()], [torch.ones(2, 4)])
    (constant,) = program.constants
    assert constant.data_ptr() == weight.data_ptr()


def test_programs_of_the_same_weights_share_the_narrow_ones():
    weight, known = torch.randn(4, 4), {}
    a, b = (
        with_weights(program_of(function, [torch.ones(2, 4)]), torch.bfloat16, known)
        for function in (lambda x: [x @ weight], lambda x: [(x + 1) @ weight])
    )
    x = torch.randn(2, 4)
    torch.testing.assert_close(b(x)[0], (x + 1) @ weight, rtol=0.02, atol=0.05)
    addresses = [
        {c.data_ptr() for c in program.constants if c.dtype == torch.bfloat16} for program in (a, b)
    ]
    assert addresses[0] == addresses[1]
    assert len(addresses[0]) == 1


def test_a_product_that_stays_wide_takes_a_narrow_constant_wide():
    weight = torch.randn(4, 4)
    program = program_of(lambda x: [x @ weight + weight @ x], [torch.ones(4, 4)])
    x = torch.randn(4, 4)
    (result,) = with_weights(program, torch.bfloat16)(x)
    torch.testing.assert_close(result, x @ weight + weight @ x, rtol=0.02, atol=0.05)


def test_what_else_takes_a_narrow_constant_sees_it_wide():
    weight = torch.randn(4, 4)
    program = program_of(lambda x: [x @ weight + weight], [torch.ones(4, 4)])
    (result,) = with_weights(program, torch.bfloat16)(torch.zeros(4, 4))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, weight, rtol=2**-8, atol=0)
