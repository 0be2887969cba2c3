from training.monitoring.console import status_line

ROW = {
    "step": 1200, "stage": "tune", "loss": 1.23456, "grad_norm": 0.5, "learning_rate/connector": 1e-4, "learning_rate/lora": 2e-4,
    "supervised_tokens_per_second": 12345.6, "samples_per_second": 58.83, "peak_memory_gib": 43.9, "data_wait": 0.031,
}  # fmt: skip


TIMES = "0:01:23 gone, 0:12:10 left"


def test_a_log_step_is_one_line_with_all_metrics() -> None:
    assert status_line(ROW, 6400, TIMES) == (
        "step 1,200/6,400 tune | loss 1.2346 | lr connector 1.00e-04 lora 2.00e-04 | grad norm 0.5 | 12,346 supervised tokens/s"
        " | 58.8 samples/s | peak 43.90 GiB | data wait 3% | 0:01:23 gone, 0:12:10 left"
    )


def test_a_device_with_a_known_peak_shows_tflops_and_mfu() -> None:
    assert status_line({**ROW, "tflops": 371.2, "mfu": 0.3753}, 6400, TIMES).endswith(
        " | data wait 3% | 371 TFLOP/s, MFU 37.5% | 0:01:23 gone, 0:12:10 left"
    )


def test_an_evaluation_has_its_own_line() -> None:
    row = {"step": 5, "stage": "tune", "eval_loss": 0.75, "eval_tokens": 1600}
    assert status_line(row, 10, TIMES) == "step 5/10 tune | validation loss 0.7500 over 1,600 tokens"
